package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"multihomed/allocator"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/routedlease"
	"multihomed/internal/status"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

const leaseListHelp = `List the leases of clients, by interface and address. Those of links are in
"multihomectl status". It works without the daemon; without root only as far as this
user may read the leases.

Leases that have ended keep their number for the next time, until all others are used
up; --all lists them too.

With --json it is an object: schema (1) and leases[]: interface, address or id, table, routed, uid,
user, tag, live, expires_in_s of what must be renewed, released of what has ended.`

func (a *app) leaseList() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use: "list", Short: "list the leases of clients", Long: leaseListHelp, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := a.load(cmd.Context())
			list, err := readClientLeases(cmd.Context(), cfg)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if !all {
				list = slices.DeleteFunc(list, func(l status.ClientLease) bool { return !l.Live })
			}
			if asJSON {
				for i := range list {
					l := &list[i]
					l.Interface, l.ID, l.Tag = escape.Name(l.Interface), escape.Name(l.ID), escape.Name(l.Tag)
				}
				encoder := json.NewEncoder(a.Out)
				encoder.SetIndent("", "  ")
				return encoder.Encode(status.ClientLeases{Schema: status.Schema, Leases: list})
			}
			return renderLeases(a.Out, list)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, see above")
	cmd.Flags().BoolVar(&all, "all", false, "also those that have ended")
	return cmd
}

func readClientLeases(ctx context.Context, cfg config.Config) ([]status.ClientLease, error) {
	list := []status.ClientLease{} // An empty array in JSON, not null.
	leases, err := allocator.OpenReadOnly(ctx, allocator.Options{Path: filepath.Join(cfg.StateDir, allocator.DefaultName), Range: cfg.Tables, Boot: bootOfDaemon(cfg)})
	switch {
	case errors.Is(err, allocator.ErrMissing):
		// Not started yet: there are none.
	case err != nil:
		return nil, err
	default:
		for _, l := range leases.Clients() {
			list = append(list, plainLease(l))
		}
	}
	links, errs := routedlease.Open(cfg.RuntimeDir)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if all := links.All(); len(all) > 0 {
		v, err := offline.Read(ctx, cfg)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			list = append(list, routedLease(l, v))
		}
	}
	slices.SortFunc(list, func(x, y status.ClientLease) int {
		return cmp.Or(strings.Compare(x.Interface, y.Interface), strings.Compare(x.Address, y.Address), strings.Compare(x.ID, y.ID))
	})
	return list, nil
}

// bootOfDaemon is the boot id that the daemon sees, empty if it is unknown. systemd-nspawn
// mounts a boot id of its own over the kernel's, and the daemon's sandbox of Debian 12 has a
// /proc without it.
func bootOfDaemon(cfg config.Config) string {
	pid, held, err := offline.Worker(cfg)
	if err != nil || !held || pid == 0 {
		return ""
	}
	id, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/proc/sys/kernel/random/boot_id", pid))
	if err != nil {
		return "" // This user may not look, or the daemon has ended.
	}
	return strings.TrimSpace(string(id))
}

func plainLease(l allocator.ClientLease) status.ClientLease {
	out := status.ClientLease{
		Interface: l.Key.Interface, Table: l.Table, UID: l.Owner, User: userName(l.Owner), Tag: l.Tag, Live: l.Live,
	}
	if l.Key.Family == 0 {
		out.ID = l.Key.Address
	} else {
		out.Address = l.Key.Address
	}
	if l.Live {
		out.ExpiresIn = expiresIn(l.Expires)
	} else {
		out.Released = &l.Released
	}
	return out
}

func routedLease(l routedlease.Link, v *view.View) status.ClientLease {
	out := status.ClientLease{
		Interface: l.Interface, Address: l.Address.String(), Routed: true, Live: true,
		UID: l.Owner, User: userName(l.Owner), Tag: l.Tag,
	}
	for plan := range v.Planner.Links() {
		if key, ok := routing.KeyOf(plan.Link, l.Address); ok && plan.Link.Name == l.Interface {
			out.Table = plan.Link.Tables[key]
		}
	}
	if l.Expires != 0 {
		out.ExpiresIn = expiresIn(l.Expires)
	}
	return out
}

func expiresIn(end time.Duration) int64 {
	return max(int64((end-allocator.Uptime())/time.Second), 0)
}

func userName(uid uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return ""
	}
	return u.Username
}

func renderLeases(out io.Writer, list []status.ClientLease) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no client has a lease; the tables of links are in multihomectl status")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "interface\tfor\ttable\tuser\tends\ttag")
	for _, l := range list {
		what, who := l.Address, l.User
		if l.ID != "" {
			what = strconv.Quote(l.ID)
		}
		if who == "" {
			who = strconv.FormatUint(uint64(l.UID), 10)
		}
		ends := "with the address, or when it is released"
		switch {
		case !l.Live:
			ends = "ended " + l.Released.Format(time.DateTime)
		case l.ExpiresIn > 0 || !l.Routed:
			ends = "in " + (time.Duration(l.ExpiresIn) * time.Second).String() + " unless it is renewed"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", clean(l.Interface), clean(what), l.Table, clean(who), ends, clean(l.Tag))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the leases: %w", err)
	}
	return nil
}
