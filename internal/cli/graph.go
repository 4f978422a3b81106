package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

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
other options of the packet are those of "ip route get". The kernel is asked, too: if it
answers otherwise, the picture says so, and the exit status is 3.

The formats are svg, a picture that every browser shows, and dot, the language of
Graphviz. The SVG has no script and loads nothing.

It works on every Linux host, without the daemon, without NetworkManager and without root.
It changes nothing. The exit status is 0, 2 if the command line is wrong or the host cannot
be read, and 3 if the kernel answers otherwise.`

// formats are the values of --format.
var formats = []string{"svg", "dot"} //nolint:gochecknoglobals // a constant in all but name

// families are the values of --family.
var families = []string{"ipv4", "ipv6", "both"} //nolint:gochecknoglobals // a constant in all but name

// exitDiffers: the kernel answers otherwise than the simulation.
const exitDiffers = 3

// graphFlags are those of graph.
type graphFlags struct {
	format, family, output string
	all                    bool
	packet                 packetFlags
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
	g.packet.add(cmd)
	for name, words := range map[string][]string{"format": formats, "family": families} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // The flag is defined above.
		}
	}
	for _, name := range []string{"oif", "iif"} {
		if err := cmd.RegisterFlagCompletionFunc(name, a.completeInterfaces); err != nil {
			panic(err) // The flag is defined above.
		}
	}
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
	packet, wanted, err := g.packet.parse(cmd)
	if err != nil {
		return err
	}
	if wanted && len(options.Families) > 0 && options.Families[0] != routing.FamilyOf(packet.To) {
		return usageError(cmd, "--flow %s is an address of %s, and --family is %s", packet.To, routing.FamilyOf(packet.To).Name(), g.family)
	}
	facts, err := a.pictured(ctx, a.load(ctx))
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if wanted {
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

// packetFlags describe a packet in the words of `ip route get`.
type packetFlags struct {
	to, from, oif, iif, mark, proto string
	uid                             uint32
	sport, dport                    uint16
	tos                             uint8
}

func (p *packetFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&p.to, "flow", "", "show the way of a packet to this `address`")
	flags.StringVar(&p.from, "from", "", "source `address` of the packet")
	flags.StringVar(&p.oif, "oif", "", "`interface` that its socket is bound to")
	flags.StringVar(&p.iif, "iif", "", "`interface` by which it came in: it is forwarded")
	flags.StringVar(&p.mark, "mark", "", "its firewall mark, a `number` such as 0x10")
	flags.Uint32Var(&p.uid, "uid", 0, "`number` of the user of its socket")
	flags.StringVar(&p.proto, "proto", "", "its transport `protocol`: tcp, udp, icmp or a number")
	flags.Uint16Var(&p.sport, "sport", 0, "its source `port`")
	flags.Uint16Var(&p.dport, "dport", 0, "its destination `port`")
	flags.Uint8Var(&p.tos, "tos", 0, "its type of service, a `number` from 0 to 255")
}

// parse makes a packet of the flags. It is not wanted if there is no destination.
func (p *packetFlags) parse(cmd *cobra.Command) (f lookup.Flow, wanted bool, err error) {
	if p.to == "" {
		for _, name := range []string{"from", "oif", "iif", "mark", "uid", "proto", "sport", "dport", "tos"} {
			if cmd.Flags().Changed(name) {
				return f, false, usageError(cmd, "--%s describes a packet; name its destination with --flow", name)
			}
		}
		return f, false, nil
	}
	if f.To, err = netip.ParseAddr(p.to); err != nil {
		return f, false, usageError(cmd, "--flow is %q; it is an address such as 203.0.113.1", escape.Text(p.to))
	}
	f.To = f.To.Unmap().WithZone("")
	if p.from != "" {
		if f.From, err = netip.ParseAddr(p.from); err != nil {
			return f, false, usageError(cmd, "--from is %q; it is an address such as 192.0.2.7", escape.Text(p.from))
		}
		if f.From = f.From.Unmap().WithZone(""); routing.FamilyOf(f.From) != routing.FamilyOf(f.To) {
			return f, false, usageError(cmd, "--flow and --from are addresses of different families")
		}
	}
	if p.oif != "" && p.iif != "" {
		return f, false, errors.New("--oif and --iif cannot go together")
	}
	f.OIF, f.IIF = escape.Original(p.oif), escape.Original(p.iif)
	if p.mark != "" {
		mark, err := strconv.ParseUint(p.mark, 0, 32)
		if err != nil {
			return f, false, usageError(cmd, "--mark is %q; it is a number such as 0x10", escape.Text(p.mark))
		}
		f.Mark = uint32(mark)
	}
	switch strings.ToLower(p.proto) {
	case "":
	case "icmp":
		f.IPProto = 1
	case "tcp":
		f.IPProto = 6
	case "udp":
		f.IPProto = 17
	case "icmpv6", "ipv6-icmp":
		f.IPProto = 58
	default:
		n, err := strconv.ParseUint(p.proto, 10, 8)
		if err != nil {
			return f, false, usageError(cmd, "--proto is %q; it is tcp, udp, icmp, ipv6-icmp or a number", escape.Text(p.proto))
		}
		f.IPProto = uint8(n)
	}
	f.UID, f.SourcePort, f.DestinationPort, f.TOS = p.uid, p.sport, p.dport, p.tos
	return f, true, nil
}
