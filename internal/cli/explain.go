package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/explain"
	"multihomed/internal/explain/reading"
	"multihomed/internal/fsutil"
	"multihomed/internal/status"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/socket"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// exitDiffers: the kernel and the simulation of explain differ.
const exitDiffers = 3

const explainHelp = `Show how this host routes a packet to an address, and why: every rule in the order of the
kernel with "matches" or "no" and the reason, which table answered with which route, and what
the kernel itself says. It knows the rules of multihomed by link and profile, and explains
those of other programs just as well. It needs neither the daemon nor NetworkManager nor
root, and changes nothing.

Rules that do not match are folded where several in a row have the same reason; -v shows
each.

Without --iif the packet is sent by this host. Without --from the socket is bound to no
address: connect(2) then looks up a second time with the address that it got, and this is
shown where the result differs. With --iif the packet is forwarded, and the check of its
source (rp_filter) is shown, too.

--what-if shows the answer as it would be if a link was down, or up again. It may be given
several times. VLANs on a link go down with it, and so does a bond or bridge without another
port that works. Failover then chooses among the uplinks that are left, as the daemon would. The
output says what was assumed.

--save-snapshot writes what was read to a new file. --snapshot explains from such a file
what that host does, also for other questions. A file has addresses and names of the host.

The exit status is 0 if the packet leaves or is for this host, 1 if it is refused, dropped
or has no route, 2 if the command line is wrong, the host cannot be read, or the answer is
not certain because facts are missing, and 3 if the kernel says something else than this
program. In that case it also writes a snapshot for a bug report, and prints its name.

With --json it prints the same for programs. Fields are only ever added as long as
"schema" is 1:

  schema          1
  question        destination, from, iif, oif, uid, user, mark, protocol, sport, dport,
                  tos, text (in words)
  summary         the answer in one sentence
  outcome         "sent", "local", "refused", "no route", or "assumed on-link" (no route,
                  and the kernel takes the destination for a neighbour)
  interface, via, source
                  of the packet that leaves
  kernel_asked    true if the kernel was asked
  kernel_agrees   false if it says something else
  complete        false if facts are missing
  lookups[]       purpose ("route", "source" for the second lookup of connect,
                  "reverse path"), text, outcome, error, objection, table, routes[],
                  rules[]: priority, text, result ("no", "not understood", "goto",
                  "goto nowhere", "nothing", "no route", "throw", "suppressed",
                  "outranked", "answer", "stepped over", "not asked"), why, selector (the first that does not
                  match), table, route, rejected, by ("multihomed", "kernel", "other"),
                  maker, reason, sentence, link, profile, lifts, binding,
                  kernel: error, table, route, sent, source, difference
  may_differ[]    code, text: what the answer may depend on besides
  what_if[], assumptions[]
                  the changes, and what was assumed
  snapshot        when the facts were read, if they come from a snapshot
  annotations     who named the rules: "daemon", "multihomectl" or ""
  unread[]        what could not be read`

// explainOptions are the flags of explain.
type explainOptions struct {
	from, oif, iif, uid, mark, proto, sport, dport, tos string
	whatIf                                              []string
	snapshot, save                                      string
	asJSON, verbose                                     bool
}

func (a *app) explain() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain ADDRESS",
		Short: "show how a packet to an address is routed, and why",
		Long:  explainHelp,
		Example: `  multihomectl explain 203.0.113.1
  multihomectl explain 203.0.113.1 --from 192.0.2.10 --proto tcp --dport 443
  multihomectl explain 2001:db8::1 --uid backup --what-if down:wan0
  multihomectl explain 203.0.113.1 --iif br0 --from 172.31.0.5`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && o.snapshot == "" {
				return usageError(cmd, "%s needs the address that the packet is for", cmd.CommandPath())
			}
			return atMostOne(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			how, err := a.look()
			if err != nil {
				return err
			}
			if fd, terminal := descriptor(a.Out); terminal {
				if width, _, err := term.GetSize(fd); err == nil && width > 0 {
					how.width = min(width, widestExplained)
				}
			}
			how.verbose = o.verbose
			return a.runExplain(cmd, args, o, how)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	o.packet(cmd)
	flags.StringArrayVar(&o.whatIf, "what-if", nil, "`change` to assume: down:LINK or up:LINK; it may be repeated")
	flags.StringVar(&o.snapshot, "snapshot", "", "explain from this `file` instead of this host")
	flags.StringVar(&o.save, "save-snapshot", "", "write what was read to this new `file`")
	flags.BoolVar(&o.asJSON, "json", false, "print JSON, see above")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "show each rule by itself")
	cmd.MarkFlagsMutuallyExclusive("snapshot", "save-snapshot")
	changes := func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, verb := range []string{"down:", "up:"} {
			for _, name := range reading.Names() {
				if strings.HasPrefix(verb+name, word) {
					out = append(out, verb+name)
				}
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	complete(cmd, map[string]cobra.CompletionFunc{"what-if": changes})
	return cmd
}

// packet defines the flags that describe a packet.
func (o *explainOptions) packet(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "", "source `address`; without it the socket is bound to none")
	flags.StringVar(&o.oif, "oif", "", "`interface` that the socket is bound to")
	flags.StringVar(&o.iif, "iif", "", "`interface` that a forwarded packet comes in by; it needs --from")
	flags.StringVar(&o.uid, "uid", "", "`user` who sends, by name or number; without it the one who asks")
	flags.StringVar(&o.mark, "mark", "", "`mark` of the packet, such as 0x10 or 0x10/0xff")
	flags.StringVar(&o.proto, "proto", "", "`protocol` by name or number: tcp, udp, icmp, 47")
	flags.StringVar(&o.sport, "sport", "", "source `port`")
	flags.StringVar(&o.dport, "dport", "", "destination `port`")
	flags.StringVar(&o.tos, "tos", "", "type of service or traffic class: a `number` such as 0x10, or a DSCP name such as af41")
	cmd.MarkFlagsMutuallyExclusive("oif", "iif")
	interfaces := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return reading.Names(), cobra.ShellCompDirectiveNoFileComp
	}
	complete(cmd, map[string]cobra.CompletionFunc{
		"from": completeFrom, "oif": interfaces, "iif": interfaces, "uid": completeUser, "mark": words(),
		"proto": words("tcp", "udp", "icmp", "ipv6-icmp", "sctp"), "sport": words(), "dport": words(), "tos": words(explain.DSCPNames()...),
	})
}

// flow makes the question of the flags. The address may be missing with a snapshot.
func (o explainOptions) flow(cmd *cobra.Command, args []string) (f lookup.Flow, err error) {
	p := explain.Packet{From: o.from, OIF: o.oif, IIF: o.iif, Protocol: o.proto}
	bad := func(flag, value, valid string) error {
		return usageError(cmd, "--%s cannot be %q: %s", flag, escape.Text(value), valid)
	}
	if len(args) == 1 {
		if p.To = args[0]; p.To == "" {
			return f, usageError(cmd, "\"\" is no address; give one such as 203.0.113.1 or 2001:db8::1, names are not resolved")
		}
	}
	if p.UID, err = userOf(o.uid, uint32(os.Geteuid())); err != nil { //nolint:gosec // a user
		return f, bad("uid", o.uid, err.Error())
	}
	if p.Mark, err = markOf(o.mark); err != nil {
		return f, bad("mark", o.mark, err.Error())
	}
	for flag, port := range map[string]struct {
		text string
		to   *uint16
	}{"sport": {o.sport, &p.SourcePort}, "dport": {o.dport, &p.DestinationPort}} {
		if port.text == "" {
			continue
		}
		n, err := strconv.ParseUint(port.text, 10, 16)
		if err != nil || n == 0 {
			return f, bad(flag, port.text, "it is a number from 1 to 65535")
		}
		*port.to = uint16(n)
	}
	if o.tos != "" {
		tos, known := explain.ParseTOS(o.tos)
		if !known {
			return f, bad("tos", o.tos, "it is a number from 0 to 0xff, or one of "+strings.Join(explain.DSCPNames(), ", "))
		}
		p.TOS = tos
	}
	if f, err = p.Flow(flagOf); err != nil {
		return f, usageError(cmd, "%v", err)
	}
	return f, nil
}

// flagOf is the flag of a field of a packet.
func flagOf(field string) string {
	switch field {
	case explain.FieldFrom:
		return "--from"
	case explain.FieldProtocol:
		return "--proto"
	default:
		return "--" + field
	}
}

// userOf finds a user by name or number.
func userOf(text string, otherwise uint32) (uint32, error) {
	if text == "" {
		return otherwise, nil
	}
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(text)
	if err != nil {
		return 0, errors.New("this host has no user of that name; give a name or a number")
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("its number is %q", u.Uid)
	}
	return uint32(n), nil
}

// markOf reads a mark; with a mask it is what the mask leaves.
func markOf(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	valid := errors.New("it is a number such as 16, 0x10 or 0x10/0xff")
	value, mask, masked := strings.Cut(text, "/")
	v, err := strconv.ParseUint(value, 0, 32)
	if err != nil {
		return 0, valid
	}
	if masked {
		m, err := strconv.ParseUint(mask, 0, 32)
		switch {
		case err != nil:
			return 0, valid
		case v&^m != 0:
			return 0, errors.New("the mark has bits that the mask leaves out")
		}
	}
	return uint32(v), nil
}

func (a *app) runExplain(cmd *cobra.Command, args []string, o explainOptions, how look) error {
	flow, err := o.flow(cmd, args)
	if err != nil {
		return err
	}
	changes := make([]explain.Change, 0, len(o.whatIf))
	for _, text := range o.whatIf {
		c, err := explain.ParseChange(text)
		if err != nil {
			return usageError(cmd, "--what-if: %v", err)
		}
		changes = append(changes, c)
	}
	if err := reading.Check(flow); err != nil {
		return usageError(cmd, "%v", err)
	}
	var s *explain.Snapshot
	if o.snapshot != "" {
		if s, err = openSnapshot(o.snapshot, &flow, cmd); err != nil {
			return &exitError{exitUsage, err}
		}
	} else {
		if s, err = a.readExplained(cmd.Context(), flow, o.asJSON || o.verbose, o.save != "", changes); err != nil {
			return &exitError{exitUsage, err}
		}
	}
	facts := &s.Facts
	if len(changes) > 0 {
		if facts, err = facts.WhatIf(changes); err != nil {
			return &exitError{exitUsage, err}
		}
	}
	d := facts.Explain(flow)
	if o.snapshot != "" {
		d.Snapshot = s.Taken
	}
	if o.save != "" {
		if err := saveSnapshot(o.save, *s); err != nil {
			return &exitError{exitUsage, err}
		}
	}
	if o.asJSON {
		err = d.WriteJSON(a.Out)
	} else {
		err = renderExplanation(a.Out, d, how)
	}
	switch {
	case err != nil:
		return &exitError{exitUsage, fmt.Errorf("printing the explanation: %w", err)}
	case !d.Agrees:
		return a.differs(*s, o)
	case !d.Complete:
		return &exitError{status: exitUsage}
	case !d.Reaches():
		return &exitError{status: exitProblem}
	default:
		return nil
	}
}

// differs writes a snapshot for a bug report, unless there is one.
func (a *app) differs(s explain.Snapshot, o explainOptions) error {
	path := o.save
	if path == "" {
		path = o.snapshot
	}
	if path == "" {
		name := time.Now().Format("multihomed-explain-20060102-150405.000000000") + ".json"
		var err error
		for _, directory := range []string{".", os.TempDir()} {
			path = filepath.Join(directory, name)
			if err = saveSnapshot(path, s); err == nil {
				break
			}
		}
		if err != nil {
			return &exitError{exitDiffers, fmt.Errorf("the kernel says something else, which is a defect of multihomectl; a snapshot for the report could not be written: %w", err)}
		}
	}
	return &exitError{exitDiffers, fmt.Errorf("the kernel says something else, which is a defect of multihomectl: please report it with the snapshot %s, which has addresses and names of this host", path)}
}

// openSnapshot reads a file, and takes its question if there is no other.
func openSnapshot(path string, flow *lookup.Flow, cmd *cobra.Command) (*explain.Snapshot, error) {
	data, err := fsutil.ReadFile(path, explain.Largest)
	if err != nil {
		return nil, fmt.Errorf("reading the snapshot: %w", err)
	}
	s, err := explain.Load(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !flow.To.IsValid() {
		for _, name := range []string{"from", "oif", "iif", "uid", "mark", "proto", "sport", "dport", "tos"} {
			if cmd.Flags().Changed(name) {
				return nil, fmt.Errorf("--%s needs an address, too: without one the question of the snapshot is asked", name)
			}
		}
		*flow = s.Question
	} else if !cmd.Flags().Changed("uid") {
		flow.UID = s.Question.UID
	}
	return s, s.Other(*flow)
}

// saveSnapshot writes a new file, whole or not at all, for its owner alone.
func saveSnapshot(path string, s explain.Snapshot) error {
	data, err := explain.Save(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".multihomed-explain-*")
	if err != nil {
		return fmt.Errorf("writing the snapshot: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the snapshot: %w", err)
	}
	// A link, unlike a rename, replaces nothing.
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing the snapshot: %s exists already; name a new file", path)
	} else if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("writing the snapshot %s: %w", path, err)
		}
	} else if err != nil {
		return fmt.Errorf("writing the snapshot: %w", err)
	}
	return nil
}

// readExplained reads what an answer depends on, and what multihomed says of its rules.
func (a *app) readExplained(ctx context.Context, flow lookup.Flow, all, whole bool, changes []explain.Change) (*explain.Snapshot, error) {
	// With many links the answer of the daemon is long: it comes while the kernel is read.
	cfg := a.find(ctx).Config
	answered := fetchNotes(ctx, cfg)
	// After a change the socket may get another address, and then needs routes that are not asked for now.
	s, err := reading.Host(ctx, flow, whole || len(changes) > 0)
	if err != nil {
		return nil, err
	}
	s.Version = a.Version
	f := &s.Facts
	if !slices.ContainsFunc(f.Rules, func(r routing.Rule) bool { return r.Protocol == routing.Multihomed }) {
		return s, nil
	}
	// After a change any other link may carry the packet.
	w := status.Wanted{All: all || whole || len(changes) > 0, Rules: f.Touched(flow)}
	told, err := answered(w)
	if err != nil {
		if told, err = a.lookForNotes(ctx, cfg, err); err != nil {
			f.Unread = append(f.Unread, fmt.Sprintf("which links the rules of multihomed are for: %v", err))
			return s, nil
		}
	}
	reading.Annotate(f, told, cfg)
	return s, nil
}

// fetchNotes asks the daemon. The function that it returns waits for the answer.
func fetchNotes(ctx context.Context, cfg config.Config) func(status.Wanted) (*status.Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTime, errors.New("multihomed does not answer"))
	var reply socket.Reply
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		reply, err = fetchDocument(ctx, cfg)
	}()
	return func(w status.Wanted) (*status.Status, error) {
		<-done
		if err != nil {
			return nil, err
		}
		return reply.Pick(w)
	}
}

// lookForNotes reads the host as status does without the daemon, which did not answer because of err.
func (a *app) lookForNotes(ctx context.Context, cfg config.Config, err error) (*status.Status, error) {
	v, readErr := offline.Look(ctx, cfg)
	if readErr != nil {
		return nil, errors.Join(err, readErr)
	}
	s := v.Status(nil, a.Version)
	return &s, nil
}
