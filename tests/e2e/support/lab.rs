//! Small builds over the busybox base.

use std::path::PathBuf;

use super::{Context, Run, base, oci};

/// A build context directory and caches of its own; `FROM busybox` is the base image.
pub(crate) struct Lab {
    pub(crate) context: Context,
}

impl Lab {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self::of(Context::new())
    }

    /// In a context that is there already.
    pub(crate) fn of(context: Context) -> Self {
        std::fs::create_dir_all(context.path("project")).unwrap();
        Self { context }
    }

    /// Writes a file of the build context, at one stroke: another build may be reading what is there.
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let fresh = self.context.write_mode("fresh-file", content, 0o644);
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::rename(fresh, path).unwrap();
        self
    }

    /// A path in the build context.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.context.path("project").join(path)
    }

    /// A build of this Dockerfile, to be given outputs and run. The build context is its last argument already.
    pub(crate) fn build(&self, dockerfile: &str) -> Run {
        self.build_showing("plain", dockerfile)
    }

    /// The same with a kind of progress.
    pub(crate) fn build_showing(&self, progress: &str, dockerfile: &str) -> Run {
        self.file("Dockerfile", dockerfile);
        self.context
            .crossdock()
            .arg("build")
            .option("--progress", progress)
            .option_path("--build-context", "busybox=oci-layout://", base::busybox())
            .arg(self.context.path("project"))
    }

    /// Builds and reads the image.
    #[track_caller]
    pub(crate) fn image(&self, dockerfile: &str) -> oci::Image {
        self.image_with(dockerfile, &[])
    }

    /// Builds with more options and reads the image.
    #[track_caller]
    pub(crate) fn image_with(&self, dockerfile: &str, options: &[&str]) -> oci::Image {
        self.image_of(self.build(dockerfile).args(options))
    }

    /// Runs a build and reads the image.
    #[track_caller]
    pub(crate) fn image_of(&self, build: Run) -> oci::Image {
        let archive = self.context.path("image.tar");
        build.option_path("--output", "type=oci,dest=", &archive).success();
        oci::Image::read(&archive)
    }
}
