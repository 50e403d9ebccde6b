//! Images: descriptors, manifests, indexes and configurations (OCI image specification 1.1, Docker v2 schema 2).
