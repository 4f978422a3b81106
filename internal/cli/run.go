package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"multihomed/internal/binder/client"
	"multihomed/internal/bindrun"
	"multihomed/internal/escape"
)

const runHelp = `Run a program that is bound to one link: everything that it and the programs it starts
send to the outside leaves by this link, IPv4 and IPv6, and nothing if the link is down.
Names are resolved by the DNS servers of the link. This host itself, networks behind it such
as those of containers, and the link's own network are reached as without the binding.

It works for any program, static ones included. The program gets a cgroup of its own, which
multihomed-binder binds to the link. Then it takes the place of this command, so that
signals, job control, the terminal and the exit status are its own. Programs that it leaves
behind stay bound.

Root may do this, and the members of the group that [run] in the configuration names.

Without multihomed-binder each new socket of the program is bound to the link's device
instead. That covers less, which standard error lists; --require-helper refuses it.`

// attendCommand is the hidden command of a bound program's attendant.
const attendCommand = "attend"

func (a *app) run() *cobra.Command {
	o := bindrun.Options{Attendant: []string{"multihomectl", attendCommand}, Before: a.GiveBack, Say: a.say}
	cmd := &cobra.Command{
		Use:   "run --link LINK [--] COMMAND [ARGUMENT...]",
		Short: "run a program that is bound to a link",
		Long:  runHelp,
		Example: `  multihomectl run --link wan1 curl https://example.com
  multihomectl run --link wan1 -- bash
  sudo multihomectl run --link wan1 -- runuser -u alice -- COMMAND`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd, "%s needs a program to run", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: a.completeProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Args = args
			return a.runBound(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	// What follows the program is for the program.
	flags.SetInterspersed(false)
	flags.StringVarP(&o.Link, "link", "l", "", "`name` of the link's interface")
	flags.BoolVar(&o.RequireHelper, "require-helper", false, "fail if multihomed-binder cannot bind the program")
	flags.StringVar(&o.Socket, "socket", client.DefaultPath, "`path` of the socket of multihomed-binder")
	if err := cmd.MarkFlagRequired("link"); err != nil {
		panic(err) // The flag is defined above.
	}
	complete(cmd, map[string]cobra.CompletionFunc{"link": a.completeLink})
	return cmd
}

// completeLink offers the links.
func (a *app) completeLink(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	return a.completeInterfaces(cmd, nil, word)
}

// say writes each line of a text to standard error.
func (a *app) say(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintf(a.Err, "multihomectl: %s\n", escape.Text(strings.TrimSuffix(line, "\n")))
	}
}

func (a *app) runBound(ctx context.Context, o bindrun.Options) error {
	err := bindrun.Run(ctx, o)
	e, is := errors.AsType[*bindrun.Error](err)
	if !is {
		return err // There is no other.
	}
	return &exitError{e.Status, errors.New(escape.Text(err.Error()))}
}

// attend is the process that stays beside a bound program, until it has ended.
func (a *app) attend() *cobra.Command {
	return &cobra.Command{
		Use: attendCommand, Short: "stay beside a program that is bound to a link", Hidden: true,
		Long:               "multihomectl run starts this. It removes the cgroup of the program when that has ended, and without multihomed-binder it opens the sockets of the program.",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if status := bindrun.Attend(args, []string{os.Args[0], attendCommand}); status != exitOK {
				return &exitError{status: status}
			}
			return nil
		},
	}
}
