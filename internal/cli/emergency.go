package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"multihomed/internal/cleanup"
	"multihomed/internal/daemon"
	"multihomed/internal/english"
	"multihomed/internal/rights"
	"multihomed/internal/unitfile"
)

const emergencyHelp = `Remove the rules of multihomed that answer "unreachable", so that the host routes as
without it wherever a routing table of a link is empty. multihomed-failed.service runs
this when multihomed has failed for good. All other rules stay. A running multihomed
restores what this removes. With --if-unwanted, for ExecStopPost= of the service, it
does so only if multihomed.service is disabled or masked.

It needs neither the configuration nor the database nor NetworkManager.`

// Levels of lines in the journal (sd-daemon(3)).
const (
	failure = "<3>"
	warning = "<4>"
)

// journal returns the level as a prefix if the journal reads the line, else nothing.
func (a *app) journal(level string) string {
	if a.Env("JOURNAL_STREAM") != "" {
		return level
	}
	return ""
}

func (a *app) emergency() *cobra.Command {
	var ifUnwanted bool
	cmd := &cobra.Command{
		Use: "emergency", Short: "let the host route as without a multihomed that has failed", Long: emergencyHelp,
		Args: noArguments, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			unit := daemon.Unit()
			if ifUnwanted && !unit.Unwanted() {
				return nil
			}
			able, err := rights.NetAdmin()
			if err == nil && !able {
				err = errors.New("emergency needs the right to change routing (CAP_NET_ADMIN); to fix: sudo multihomectl emergency")
			}
			if err != nil {
				return &exitError{exitProblem, err}
			}
			done, left, err := cleanup.LetGo(cmd.Context())
			if ifUnwanted {
				if done.Rules > 0 {
					fmt.Fprintf(a.Err, "%s%s\n", a.journal(warning), daemon.Unmaintained(unitfile.Service+" is "+unit.String(), done.Rules, left))
				}
				return unfinished(err)
			}
			mark := a.journal(failure)
			for _, rule := range done.Removed {
				fmt.Fprintf(a.Err, "%sremoved %s\n", mark, clean(rule))
			}
			if len(done.Removed) == 0 && left == 0 && err == nil {
				fmt.Fprintf(a.Err, "%smultihomed HAS FAILED, and no rule of it is in the kernel: the host routes by its main table alone. "+
					"To fix: see journalctl -u multihomed, then: systemctl restart multihomed\n", mark)
				return nil
			}
			fmt.Fprintf(a.Err, "%smultihomed HAS FAILED and nobody maintains the routing: %s that answered \"unreachable\" removed, %s left. "+
				"The routing of links that stay as they are goes on; what changes is routed by the main table, and bound traffic may leave by another link. "+
				"To fix: see journalctl -u multihomed, then: systemctl reset-failed multihomed; systemctl start multihomed\n",
				mark, english.Count(done.Rules, "rule"), english.Count(left, "rule"))
			return unfinished(err)
		},
	}
	cmd.Flags().BoolVar(&ifUnwanted, "if-unwanted", false, "do it only where multihomed.service is disabled or masked")
	return cmd
}

func unfinished(err error) error {
	if err != nil {
		return &exitError{exitProblem, fmt.Errorf("some rules could not be removed: %w", err)}
	}
	return nil
}
