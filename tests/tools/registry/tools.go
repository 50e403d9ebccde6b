//go:build tools

// Package tools pins what tests the registry: the conformance suite of the OCI distribution specification, and
// crane, a client.
package tools

import (
	_ "github.com/google/go-containerregistry/cmd/crane"
	_ "github.com/opencontainers/distribution-spec/conformance"
)
