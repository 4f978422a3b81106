package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"multihomed/internal/escape"
	"multihomed/internal/lazy"
	"multihomed/internal/suggest"
)

// usageError is an error of the command line that says where to read on.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf("%s; see %s --help", fmt.Sprintf(format, args...), cmd.CommandPath())}
}

// shellWord is a word as a shell takes it: commands that are shown are there to be copied.
func shellWord(word string) string {
	isPlain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:@%+=,", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !isPlain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(escape.Text(word), "'", `'\''`) + "'"
}

func shellWords(words []string) []string {
	out := make([]string, 0, len(words))
	for _, w := range words {
		out = append(out, shellWord(w))
	}
	return out
}

// noArguments is for commands that take none: a word is an unknown subcommand, or too much.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	word := escape.Text(args[0])
	if names := commandsOf(cmd); len(names) > 0 {
		return usageError(cmd, "there is no command %q%s", strings.TrimPrefix(cmd.CommandPath()+" ", "multihomectl ")+word, suggest.Question(word, names))
	}
	return usageError(cmd, "%s takes no arguments, and got %q", cmd.CommandPath(), word)
}

func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError(cmd, "%s takes one argument, and got %d", cmd.CommandPath(), len(args))
	}
	return nil
}

func commandsOf(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

// flagError rewrites an error of pflag.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var bare *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		if unknown.GetSpecifiedShortnames() != "" {
			return usageError(cmd, "there is no flag -%s", escape.Text(unknown.GetSpecifiedName()))
		}
		name := escape.Text(unknown.GetSpecifiedName())
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if word := suggest.For(name, names); word != "" {
			return usageError(cmd, "there is no flag --%s; did you mean --%s?", name, word)
		}
		return usageError(cmd, "there is no flag --%s", name)
	case errors.As(err, &bare):
		return usageError(cmd, "--%s needs a value", bare.GetFlag().Name)
	case errors.As(err, &invalid):
		return usageError(cmd, "--%s cannot be %q: %s", invalid.GetFlag().Name, escape.Text(invalid.GetValue()), kindOfValue(invalid.GetFlag().Value.Type()))
	default:
		return usageError(cmd, "%s", escape.Text(err.Error()))
	}
}

// kindOfValue says what a flag wants.
func kindOfValue(kind string) string {
	switch kind {
	case "duration":
		return "it is a time such as 500ms or 5s"
	case "int", "uint", "int64", "uint32":
		return "it is a whole number"
	case "bool":
		return "it is true or false"
	default:
		return "it is a " + kind
	}
}

// Errors of cobra's own checks, after it parsed the flags.
var (
	missingFlags = lazy.Regexp(`^required flag\(s\) (.*) not set$`)
	oneOf        = lazy.Regexp(`^at least one of the flags in the group \[(.*)\] is required$`)
	notTogether  = lazy.Regexp(`^if any flags in the group \[.*\] are set none of the others can be; \[(.*)\] were all set$`)
)

// ourWords rewrites an error of cobra.
func ourWords(err error) error {
	text := err.Error()
	if m := missingFlags().FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s is needed", flagList(strings.Split(strings.ReplaceAll(m[1], `"`, ""), ", "), "and"))
	}
	if m := oneOf().FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s is needed", flagList(strings.Fields(m[1]), "or"))
	}
	if m := notTogether().FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s cannot go together", flagList(strings.Fields(m[1]), "and"))
	}
	return err
}

func flagList(names []string, word string) string {
	for i, n := range names {
		names[i] = "--" + n
	}
	return strings.Join(names, " "+word+" ")
}

// helpCommand replaces cobra's: an unknown topic is an error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "help about a command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return commandsOf(cmd), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if cmd == nil || err != nil || len(rest) > 0 {
				return usageError(root, "there is no command %q%s", escape.Text(strings.Join(args, " ")), suggest.Question(strings.Join(args, " "), commandsOf(root)))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// everywhere gives a command and its subcommands our errors.
func everywhere(cmd *cobra.Command) {
	if cmd.HasSubCommands() && !cmd.Runnable() {
		// Otherwise cobra prints the help for any word and succeeds.
		cmd.Args, cmd.RunE = noArguments, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	if cmd.ValidArgsFunction == nil {
		// Otherwise the shell offers files, which no command takes that does not say so.
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	if cmd.HasParent() && cmd.Parent().Name() == "completion" {
		cmd.Args = noArguments // cobra's own commands speak cobra's words.
	}
	for _, below := range cmd.Commands() {
		everywhere(below)
	}
}
