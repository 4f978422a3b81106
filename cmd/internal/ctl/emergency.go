package ctl

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"multihomed/internal/cleanup"
	"multihomed/internal/rights"
)

const emergencyHelp = `Take away the rules of multihomed that answer "unreachable", so that the host routes as
without it wherever a routing table of a link is empty. multihomed-failed.service runs
this when multihomed has failed for good. All other rules stay; a multihomed that runs
puts back what this takes away.

It asks neither the configuration nor the database nor NetworkManager.`

// journal marks a line as an error for the journal (sd-daemon(3)), where that reads it.
func (a *app) journal() string {
	if a.Env("JOURNAL_STREAM") != "" {
		return "<3>"
	}
	return ""
}

func (a *app) emergency() *cobra.Command {
	return &cobra.Command{
		Use: "emergency", Short: "let the host route as without a multihomed that has failed", Long: emergencyHelp,
		Args: noArguments, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			able, err := rights.NetAdmin()
			if err == nil && !able {
				err = errors.New("emergency needs the right to change routing (CAP_NET_ADMIN); to fix: sudo multihomectl emergency")
			}
			if err != nil {
				return &exitError{exitProblem, err}
			}
			r, err := cleanup.Open(cmd.Context(), cleanup.Options{Unreachable: true})
			if err != nil {
				return &exitError{exitProblem, err}
			}
			defer r.Close()
			done, err := r.Remove(cmd.Context())
			if err == nil {
				// What comes back is the work of a dispatcher, which maintains it.
				err = errors.Join(done.Refused...)
			}
			mark := a.journal()
			for _, rule := range done.Removed {
				fmt.Fprintf(a.Err, "%sremoved %s\n", mark, clean(rule))
			}
			fmt.Fprintf(a.Err, "%smultihomed HAS FAILED and nobody maintains the routing: %s that answered \"unreachable\" removed, %s left. "+
				"The routing of links that stay as they are goes on; what changes is routed by the main table, and bound traffic may leave by another link. "+
				"To fix: see journalctl -u multihomed, then: systemctl reset-failed multihomed; systemctl start multihomed\n",
				mark, count(done.Rules, "rule"), count(r.Rules(), "rule"))
			if err != nil {
				return &exitError{exitProblem, fmt.Errorf("not all could be removed: %w", err)}
			}
			return nil
		},
	}
}
