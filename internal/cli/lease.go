package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/allocator/client"
	"multihomed/allocator/wire"
	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

const leaseHelp = `Lease a routing table for an address on an interface that NetworkManager does not
manage, and set up its routing. When the command returns, the kernel has all rules and
routes that a link of NetworkManager would have. The daemon keeps them until the address
or the interface goes, or the lease is released. No process has to stay for it. Asking
again for the same lease changes nothing.

With --no-routing only a table number is leased, which nobody else gets; such a lease
has a lifetime, and ends unless it is renewed by asking again. --id leases a number for
anything that is not an address.

With --hold the lease lives as long as this command: it stays in the foreground, renews
the lease, and releases it when it is interrupted or terminated.

Standard output has only the table; messages go to standard error. If no table was
leased, it prints 0 and the exit status is 1. The daemon leases to root, and to the users
and groups that [allocator] in the configuration names.

With --json the answer is one object: schema (1), table, interface, address or id, tag, routed, and
where the lease can end by itself lifetime_s and expires. With --hold there is one for
every change.`

// leaseFlags are what the command line says of a lease.
type leaseFlags struct {
	name, address, id, tag string
	ipv4, ipv6             bool
	noRouting              bool
	hold                   bool
	socket                 string
	tries                  int
	interval               time.Duration
	json                   bool
}

func (f *leaseFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.name, "interface", "i", "", "`name` of the interface")
	flags.StringVarP(&f.address, "address", "a", "", "the `address`, without a prefix length")
	flags.BoolVarP(&f.ipv4, "ipv4", "4", false, "the address must be one of IPv4")
	flags.BoolVarP(&f.ipv6, "ipv6", "6", false, "the address must be one of IPv6")
	flags.StringVar(&f.id, "id", "", "lease a number for this `identifier` instead of an address")
	flags.BoolVar(&f.noRouting, "no-routing", false, "only a number: set up no routing")
	flags.StringVar(&f.socket, "socket", "", "abstract `name` of the daemon's socket; by default that of the configuration")
	flags.IntVar(&f.tries, "tries", client.DefaultTries, "how often the daemon is asked")
	flags.DurationVar(&f.interval, "interval", client.DefaultInterval, "how long to wait for each answer")
	cmd.MarkFlagsMutuallyExclusive("address", "id")
	cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6", "id")
	cmd.MarkFlagsOneRequired("address", "id")
	if err := cmd.MarkFlagRequired("interface"); err != nil {
		panic(err) // The flag is defined above.
	}
	complete(cmd, map[string]cobra.CompletionFunc{
		"interface": completeInterface, "address": f.completeAddress, "id": words(), "socket": words(), "tries": words(), "interval": words(),
	})
}

// completeInterface offers the interfaces that may have a lease.
func completeInterface(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, i := range all {
		if i.Name != routing.Loopback {
			out = append(out, i.Name)
		}
	}
	slices.SortFunc(out, status.CompareNames)
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeAddress offers the addresses of the interface that the command line names.
func (f *leaseFlags) completeAddress(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	i, err := net.InterfaceByName(f.name)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := i.Addrs()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr().String())
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) lease() *cobra.Command {
	var f leaseFlags
	cmd := &cobra.Command{
		Use:   "lease -i INTERFACE {-a ADDRESS | --id IDENTIFIER}",
		Short: "lease a table for an interface that NetworkManager does not manage",
		Long:  leaseHelp,
		Example: `  multihomectl lease -i ppp7 -a 192.0.2.7
  multihomectl lease -i ppp7 -a 192.0.2.7 --hold
  table=$(multihomectl lease -i ppp7 -a 192.0.2.7 --no-routing)`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.takeLease(cmd.Context(), f)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVarP(&f.tag, "tag", "t", "", "`text` that is kept with the lease")
	complete(cmd, map[string]cobra.CompletionFunc{"tag": words()})
	cmd.Flags().BoolVar(&f.hold, "hold", false, "stay, renew the lease, and release it at the end")
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON, see above")
	cmd.AddCommand(a.leaseList(), a.leaseRelease())
	return cmd
}

func (a *app) leaseRelease() *cobra.Command {
	var f leaseFlags
	cmd := &cobra.Command{
		Use:   "release -i INTERFACE {-a ADDRESS | --id IDENTIFIER}",
		Short: "give a lease back",
		Long: `Give a lease back, and with it the routing of its address. A lease that does not exist
is no error. Only the user who made a lease, and root, may release it.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, request, err := a.client(cmd.Context(), f)
			if err != nil {
				return err
			}
			if err := c.Release(cmd.Context(), request); err != nil {
				return &exitError{exitProblem, inWords(err)}
			}
			return nil
		},
	}
	f.register(cmd)
	return cmd
}

// inWords leaves out the code of an answer, which is for programs.
func inWords(err error) error {
	if refused, is := errors.AsType[*wire.Error](err); is {
		return errors.New(strings.TrimSuffix(err.Error(), " ("+string(refused.Code)+")"))
	}
	return err
}

// client makes the request and the client for it.
func (a *app) client(ctx context.Context, f leaseFlags) (*client.Client, client.Request, error) {
	usage := func(format string, args ...any) (*client.Client, client.Request, error) {
		return nil, client.Request{}, &exitError{exitUsage, fmt.Errorf(format, args...)}
	}
	request := client.Request{Interface: f.name, ID: f.id, Tag: f.tag, Routing: !f.noRouting && f.id == ""}
	if f.id == "" {
		address, err := netip.ParseAddr(f.address)
		switch {
		case err != nil:
			return usage("%q is not an address; give one like 192.0.2.7 or 2001:db8::7, without a prefix length", f.address)
		case address.Is4In6() || address.Zone() != "":
			return usage("%s cannot be the address of an interface; write it without a zone, and an IPv4 address as one", f.address)
		case f.ipv4 && !address.Is4():
			return usage("%s is not an address of IPv4", address)
		case f.ipv6 && !address.Is6():
			return usage("%s is not an address of IPv6", address)
		}
		request.Address = address
	}
	if f.tries < 1 || f.interval <= 0 {
		return usage("%d tries of %v make no sense; want at least 1, and a time above 0", f.tries, f.interval)
	}
	if f.socket == "" {
		cfg := a.load(ctx)
		f.socket = cfg.Allocator.Socket
	}
	c, err := client.New(client.Options{Name: f.socket, Tries: f.tries, Interval: f.interval})
	if err != nil {
		return usage("%w", err)
	}
	return c, request, nil
}

func (a *app) takeLease(ctx context.Context, f leaseFlags) error {
	c, request, err := a.client(ctx, f)
	if err != nil {
		return err
	}
	if !f.hold {
		l, err := c.Lease(ctx, request)
		if err != nil {
			return a.noLease(err)
		}
		return a.printLease(f, l)
	}
	leased := false
	var printing error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = c.Hold(ctx, request, func(l client.Lease, trouble error) {
		leased = true
		if trouble != nil {
			fmt.Fprintf(a.Err, "multihomectl: trying again: %v\n", inWords(trouble))
			return
		}
		if printing = a.printLease(f, l); printing != nil {
			cancel() // Nobody reads it any more.
		}
	})
	if err != nil && !leased {
		return a.noLease(err)
	}
	if err = errors.Join(err, printing); err != nil {
		return &exitError{exitProblem, inWords(err)}
	}
	return nil
}

// noLease prints 0, which scripts of the ancestor's client expect.
func (a *app) noLease(err error) error {
	err = inWords(err)
	if _, printing := fmt.Fprintln(a.Out, 0); printing != nil {
		err = errors.Join(err, printing)
	}
	return &exitError{exitProblem, err}
}

func (a *app) printLease(f leaseFlags, l client.Lease) error {
	if f.json {
		answer := status.GrantedLease{Schema: status.Schema, Table: l.Table, Interface: escape.Name(f.name), Address: f.address, ID: escape.Name(f.id), Tag: escape.Name(f.tag), Routed: l.Routed}
		if !l.Expires.IsZero() {
			expires := l.Expires.Round(time.Second)
			answer.Lifetime, answer.Expires = int64(whole(l.Lifetime)/time.Second), &expires
		}
		return json.NewEncoder(a.Out).Encode(answer)
	}
	if _, err := fmt.Fprintln(a.Out, uint32(l.Table)); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	switch {
	case f.hold:
		fmt.Fprintln(a.Err, "held until this command ends")
	case l.Expires.IsZero():
		fmt.Fprintln(a.Err, "kept until the address goes or `multihomectl lease release`")
	default:
		fmt.Fprintf(a.Err, "kept for %v unless it is renewed\n", whole(l.Lifetime))
	}
	return nil
}

// whole rounds a lifetime up to the seconds that were granted: a part of the first is over.
func whole(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}
