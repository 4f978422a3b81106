package cli

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"multihomed/internal/escape"
	"multihomed/internal/fsutil"
)

// Bounds of what a shell is offered.
const (
	mostOffered  = 2000
	largestUsers = 4 << 20
)

// words completes by words that are known beforehand.
func words(list ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
}

// complete says how flags of a command are completed.
func complete(cmd *cobra.Command, flags map[string]cobra.CompletionFunc) {
	for name, f := range flags {
		if err := cmd.RegisterFlagCompletionFunc(name, f); err != nil {
			panic(err) // The flag is defined beside the call.
		}
	}
}

// completeFrom offers the addresses of this host, those of the loopback interface at the end.
func completeFrom(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	slices.SortStableFunc(interfaces, func(a, b net.Interface) int {
		return int(a.Flags&net.FlagLoopback) - int(b.Flags&net.FlagLoopback)
	})
	var out []string
	for _, i := range interfaces {
		all, err := i.Addrs()
		if err != nil {
			continue // It has gone.
		}
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() && len(out) < mostOffered {
				out = append(out, p.Addr().String())
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeUser offers the users of this host's file. Others have names, too: no directory service is asked while somebody types.
func completeUser(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	data, err := fsutil.ReadFile("/etc/passwd", largestUsers)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if name, _, is := strings.Cut(line, ":"); is && name != "" && len(out) < mostOffered {
			out = append(out, escape.Name(name))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeProgram offers the programs of the search path, and files where the word has a slash or is an argument of the
// program.
func (a *app) completeProgram(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || strings.Contains(word, "/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var out []string
	for _, directory := range filepath.SplitList(a.Env("PATH")) {
		entries, err := os.ReadDir(directory)
		if err != nil {
			continue // Not every directory of the path exists.
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), word) && !e.IsDir() && len(out) < mostOffered {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveDefault
}
