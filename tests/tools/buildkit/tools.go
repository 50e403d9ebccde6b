//go:build tools

// Package tools pins the BuildKit that benches/compare measures Crossdock against, and whose reading of a
// Dockerfile the tests may compare with. `go install` refuses BuildKit by version because its go.mod has
// exclude directives; a module of our own that imports its commands does not.
package tools

import (
	_ "github.com/moby/buildkit/cmd/buildctl"
	_ "github.com/moby/buildkit/cmd/buildkitd"
)
