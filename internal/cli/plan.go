package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/preview"
	"multihomed/internal/status/offline"
)

const planHelp = `Show what multihomed would change now, as commands of ip(8) and nft(8), with the reason
of each. It changes nothing. The daemon need not run.

The output is a script for sh(1). It ends at the first command that fails. The commands
are in the order of the daemon: routes come before the rules that lead to them, and new
comes before old. A network that has no table number yet gets the next free one; if
several links need one, the daemon may give these numbers in another order.

With --config FILE it shows what would change if the daemon were started with that file,
which must exist and be valid. What only the present configuration needs is deleted then.
The directories are those of the running daemon.

Some things have no command: programs of the kernel that bind control groups and users,
the file of DNS servers, and endpoints of Multipath TCP. The script names them in
comments. The manual, multihomectl(8), lists all.

Run it as root. Another user may not read all that a plan depends on. While something is
unknown, the script says what, and deletes nothing that may be needed.

The exit status is 0 if there is nothing to change, 1 if there are changes, and 2 after an
error, and if something could not be read.

With --json it prints the same for programs. Fields are only ever added as long as
"schema" is 1:

  schema            1
  changes           true if there are steps
  complete          true if everything could be read
  steps[]           action ("set group", "add route", "replace route", "add rule",
                    "move rule", "delete rule", "delete route", "reset group",
                    "name loopback", "unname loopback" or "change nft table"),
                    family, interface, object (as iproute2 has it), why, decision
                    (multihomectl(8) explains each), link, profile, commands[],
                    note (why there is no command, or what it lacks)
  not_shown[]       what a pass does besides
  unread[]          what could not be read`

func (a *app) plan() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "show what would change now, as commands",
		Long:  planHelp,
		Example: `  multihomectl plan
  multihomectl plan --config new.toml
  multihomectl plan | sh
  multihomectl plan --json | jq -r '.steps[].commands[]'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, elsewhere, err := a.candidate(cmd.Context(), cmd.Flags().Changed("config"))
			if err != nil {
				return &exitError{exitUsage, err}
			}
			facts, err := offline.Preview(cmd.Context(), cfg)
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("planning: %w", err)}
			}
			if elsewhere {
				facts.Unknown = append(facts.Unknown, "the directories that "+a.configPath+" names: the plan uses those of the running daemon, so links may get other table numbers")
			}
			p := preview.Of(facts)
			if cmd.Flags().Changed("config") {
				p.File = a.configPath
			}
			return a.showPlan(p, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, see above")
	return cmd
}

// candidate is the configuration to plan with: that of a named file, or the one that the daemon uses.
func (a *app) candidate(ctx context.Context, named bool) (cfg config.Config, elsewhere bool, err error) {
	if named {
		return config.Candidate(a.configPath)
	}
	return a.load(ctx), false, nil
}

func (a *app) showPlan(p preview.Plan, asJSON bool) error {
	var err error
	if asJSON {
		err = p.WriteJSON(a.Out)
	} else {
		_, err = io.WriteString(a.Out, p.Script())
	}
	switch {
	case err != nil:
		return &exitError{exitUsage, fmt.Errorf("printing the plan: %w", err)}
	case !p.Complete():
		return &exitError{exitUsage, errors.New("the plan may lack something, because not everything could be read")}
	case len(p.Steps) > 0:
		return &exitError{status: exitProblem}
	default:
		return nil
	}
}
