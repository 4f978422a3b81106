package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/graph"
	"multihomed/internal/graph/host"
	"multihomed/internal/ownership"
	"multihomed/internal/status/offline"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

const graphHelp = `Draw the policy routing of this host: the rules in the order of the kernel, the tables that
they lead to, and the devices that the tables lead to. One picture is below the other for
IPv4 and for IPv6. Rules of multihomed are blue and have their reason; those of the kernel
and of other programs are grey.

Rules of multihomed with one priority share a box; so do long runs of rules of other
programs. With --all each rule has its own box.

With --flow it also shows the way of one packet: the rules that were asked, the rule that
decides, the table, the route and the device. It draws the family of that address. The
flags that describe the packet are those of multihomectl explain. The kernel is asked, too:
if it answers otherwise, the picture says so, and the exit status is 3.

The formats are svg, a picture that every browser shows, and dot, the language of
Graphviz. The SVG has no script and loads nothing.

It works on every Linux host, without the daemon, without NetworkManager and without root.
It changes nothing. The exit status is 0, 2 if the command line is wrong or the host cannot
be read, and 3 if the kernel answers otherwise.`

// formats are the values of --format.
var formats = []string{"svg", "dot"} //nolint:gochecknoglobals // a constant in all but name

// families are the values of --family.
var families = []string{"ipv4", "ipv6", "both"} //nolint:gochecknoglobals // a constant in all but name

// graphFlags are those of graph.
type graphFlags struct {
	format, family, output, to string
	all                        bool
	packet                     explainOptions
}

func (a *app) graph() *cobra.Command {
	var g graphFlags
	cmd := &cobra.Command{
		Use: "graph", Short: "draw rules, tables and devices", Long: graphHelp,
		Example: `  multihomectl graph -o routing.svg
  multihomectl graph --family ipv4 --flow 203.0.113.1 --from 192.0.2.7 -o flow.svg
  multihomectl graph --format dot | dot -Tpdf > routing.pdf`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.draw(cmd, g) },
	}
	flags := cmd.Flags()
	flags.StringVar(&g.format, "format", "svg", "`format`: svg or dot")
	flags.StringVar(&g.family, "family", "both", "address `family`: ipv4, ipv6 or both")
	flags.StringVarP(&g.output, "output", "o", "", "write to this `file` instead of the standard output")
	flags.BoolVar(&g.all, "all", false, "draw each rule")
	flags.StringVar(&g.to, "flow", "", "show the way of a packet to this `address`; the next flags describe it")
	g.packet.packet(cmd)
	complete(cmd, map[string]cobra.CompletionFunc{"format": words(formats...), "family": words(families...), "flow": words()})
	return cmd
}

func (a *app) draw(cmd *cobra.Command, g graphFlags) error {
	ctx := cmd.Context()
	if g.format != "svg" && g.format != "dot" {
		return usageError(cmd, "--format is %q; it may be svg or dot", escape.Text(g.format))
	}
	options := graph.Options{All: g.all}
	switch g.family {
	case "ipv4":
		options.Families = []routing.Family{routing.IPv4}
	case "ipv6":
		options.Families = []routing.Family{routing.IPv6}
	case "both":
	default:
		return usageError(cmd, "--family is %q; it may be ipv4, ipv6 or both", escape.Text(g.family))
	}
	packet, err := g.question(cmd)
	if err != nil {
		return err
	}
	facts, err := a.pictured(ctx, a.load(ctx))
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if packet.To.IsValid() {
		if options.Flow, err = host.Follow(ctx, packet); err != nil {
			return &exitError{exitUsage, err}
		}
	}
	draw := graph.SVG
	if g.format == "dot" {
		draw = graph.Dot
	}
	if err := a.deliver(g.output, draw(facts, options)); err != nil {
		return &exitError{exitUsage, fmt.Errorf("writing the graph: %w", err)}
	}
	if options.Flow != nil && options.Flow.Difference != "" {
		return &exitError{exitDiffers, fmt.Errorf("the kernel answers otherwise than its rules and routes say: %s", escape.Text(options.Flow.Difference))}
	}
	return nil
}

// question makes a packet of the flags; without a destination there is none.
func (g *graphFlags) question(cmd *cobra.Command) (lookup.Flow, error) {
	if g.to == "" {
		for _, name := range []string{"from", "oif", "iif", "uid", "mark", "proto", "sport", "dport", "tos"} {
			if cmd.Flags().Changed(name) {
				return lookup.Flow{}, usageError(cmd, "--%s describes a packet; name its destination with --flow", name)
			}
		}
		return lookup.Flow{}, nil
	}
	packet, err := g.packet.flow(cmd, []string{g.to})
	if f := routing.FamilyOf(packet.To); err == nil && g.family != "both" && g.family != f.String() {
		err = usageError(cmd, "--flow %s is an address of %s, and --family is %s", packet.To, f.Name(), g.family)
	}
	return packet, err
}

func (a *app) deliver(path string, document []byte) error {
	if path == "" {
		_, err := a.Out.Write(document)
		return err
	}
	return ownership.WriteFile(path, document, 0o644)
}

// pictured reads the host, and what multihomed says of it, as far as there is something.
func (a *app) pictured(ctx context.Context, cfg config.Config) (graph.Facts, error) {
	facts, err := host.Read(ctx, cfg.Tables)
	if err != nil {
		return facts, fmt.Errorf("reading rules and routes: %w", err)
	}
	s, err := askDaemon(ctx, cfg, true)
	if err == nil {
		facts.Annotate(s)
		return facts, nil
	}
	if ctx.Err() != nil {
		return facts, context.Cause(ctx)
	}
	v, err := offline.Look(ctx, cfg)
	if err != nil {
		facts.Unread = append(facts.Unread, "what multihomed would do: "+escape.Text(err.Error()))
		return facts, nil
	}
	view := v.Status(nil, a.Version)
	facts.Annotate(&view)
	return facts, nil
}
