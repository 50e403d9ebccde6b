// Subrequests asks BuildKit's Dockerfile frontend the questions behind `--check` and `--call`, and prints the
// answers as JSON. buildctl prints only their text.
//
// Its arguments are the address of buildkitd and the OCI layout that stands for the image `busybox`; on standard
// input it takes a JSON list of cases, each a directory with a Dockerfile, the frontend's
// options and the questions.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	cstore "github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/content"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
)

type testCase struct {
	Name      string            `json:"name"`
	Directory string            `json:"directory"`
	Options   map[string]string `json:"options"`
	Questions []string          `json:"questions"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx := context.Background()
	c, err := client.New(ctx, os.Args[1])
	if err != nil {
		return err
	}
	defer c.Close()
	store, err := contentlocal.NewStore(os.Args[2])
	if err != nil {
		return err
	}
	var cases []testCase
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		return err
	}
	answers := map[string]map[string]string{}
	for _, tc := range cases {
		answers[tc.Name] = map[string]string{}
		for _, question := range tc.Questions {
			ask(ctx, c, store, tc, question, answers[tc.Name])
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(answers)
}

func ask(ctx context.Context, c *client.Client, store cstore.Store, tc testCase, question string, answers map[string]string) {
	fs, err := fsutil.NewFS(tc.Directory)
	if err != nil {
		answers[question+".error"] = err.Error()
		return
	}
	options := map[string]string{
		"requestid":     "frontend." + question,
		"frontend.caps": "moby.buildkit.frontend.subrequests",
	}
	for k, v := range tc.Options {
		options[k] = v
	}
	opt := client.SolveOpt{
		Session: []session.Attachable{
			filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": fs, "dockerfile": fs}),
			content.NewAttachable(map[string]cstore.Store{"oci:base": store}),
		},
	}
	_, err = c.Build(ctx, opt, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		res, err := g.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: options})
		if err != nil {
			return nil, err
		}
		for k, v := range res.Metadata {
			if suffix, ok := strings.CutPrefix(k, "result."); ok {
				answers[question+"."+suffix] = string(v)
			}
		}
		return gateway.NewResult(), nil
	}, nil)
	if err != nil {
		answers[question+".error"] = err.Error()
	}
}
