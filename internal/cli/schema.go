package cli

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"multihomed/docs/schema"
	"multihomed/internal/escape"
	"multihomed/internal/suggest"
)

const schemaHelp = `Print the JSON schema (draft 2020-12) of what a command prints with --json: every field, its
meaning, and which values it may have. A program that reads the output can be checked
against it. The schemas are files, too: /usr/share/multihomed/schema.

A schema has the address of its version, such as /schema/1/. Fields may be added to it; it
gets another address if one goes or changes its meaning.`

func (a *app) schema() *cobra.Command {
	names := schema.Names()
	return &cobra.Command{
		Use:   "schema COMMAND",
		Short: "print the JSON schema of a command's output",
		Long:  schemaHelp,
		Example: `  multihomectl schema status
  multihomectl schema bind list
  multihomectl schema explain >explain.schema.json`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd, "%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
			}
			if len(args) > 2 {
				return usageError(cmd, "%s takes one command; got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := strings.Join(args, "-")
			text, err := schema.Of(name)
			if errors.Is(err, schema.ErrNone) {
				return usageError(cmd, "there is no schema of %q%s; there are those of %s", escape.Text(name), suggest.Question(name, names), strings.Join(names, ", "))
			}
			if err != nil {
				return &exitError{exitProblem, err}
			}
			_, err = a.Out.Write(text)
			return err
		},
	}
}
