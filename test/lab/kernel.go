package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/answers"
	"multihomed/internal/nftables"
)

// IP runs iproute2's ip on the host and returns its output.
func (h *Host) IP(ctx context.Context, args ...string) (string, error) {
	return ip(ctx, args...)
}

func ip(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := Within(ctx, 30*time.Second)
	defer cancel()
	return command(ctx, "", "ip", args...)
}

func (f Family) flag() string {
	if f == IPv6 {
		return "-6"
	}
	return "-4"
}

// RulesText is `ip rule show` of a family, with numbers instead of names.
func (h *Host) RulesText(ctx context.Context, f Family) (string, error) {
	return ip(ctx, "-N", "-d", f.flag(), "rule", "show")
}

// RoutesText is `ip route show` of a family's table (a name, a number or "all"),
// with numbers instead of names; empty for a table that is not there.
func (h *Host) RoutesText(ctx context.Context, f Family, table string) (string, error) {
	out, err := ip(ctx, "-N", "-d", f.flag(), "route", "show", "table", table)
	if err != nil && strings.Contains(out, "FIB table does not exist") {
		return "", nil
	}
	return out, err
}

// RouteGet is `ip route get`: the kernel's decision for a destination and, if
// valid, a source. Further words (oif, iif, mark) are added as they are.
func (h *Host) RouteGet(ctx context.Context, dst, src netip.Addr, more ...string) (string, error) {
	args := []string{"-N", "route", "get", dst.String()}
	if src.IsValid() {
		args = append(args, "from", src.String())
	}
	out, err := ip(ctx, append(args, more...)...)
	return strings.TrimSpace(out), err
}

// Ours is the routing protocol of multihomed: what Snapshot leaves out.
const Ours = 150

// Snapshot is what belongs to others in the kernel's routing: all rules and the
// routes of the tables main, local and default that do not carry multihomed's
// protocol, both families, one a line, sorted. Times that run (the rest of a
// lifetime) are left out, so the same scenario gives the same text.
func (h *Host) Snapshot(ctx context.Context) (string, error) {
	var lines []string
	for _, f := range []Family{IPv4, IPv6} {
		out, err := ip(ctx, "-N", "-d", "-j", f.flag(), "rule", "show")
		if err != nil {
			return "", err
		}
		if lines, err = appendObjects(lines, f.String()+" rule", out); err != nil {
			return "", err
		}
		for _, table := range []string{"main", "local", "default"} {
			out, err := ip(ctx, "-N", "-d", "-j", f.flag(), "route", "show", "table", table)
			if err != nil {
				if strings.Contains(out, "FIB table does not exist") {
					continue
				}
				return "", err
			}
			if lines, err = appendObjects(lines, f.String()+" "+table, out); err != nil {
				return "", err
			}
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n") + "\n", nil
}

// volatile are the keys of ip's JSON that change by themselves.
var volatile = []string{"expires", "age", "used", "users", "cache"}

func appendObjects(lines []string, what, text string) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		return lines, nil
	}
	var objects []map[string]any
	if err := json.Unmarshal([]byte(text), &objects); err != nil {
		return nil, fmt.Errorf("reading ip's %s: %w", what, err)
	}
	for _, o := range objects {
		if proto := fmt.Sprint(o["protocol"]); proto == fmt.Sprint(Ours) || proto == "multihomed" {
			continue
		}
		var words []string
		for k, v := range o {
			if slices.Contains(volatile, k) {
				continue
			}
			value, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			words = append(words, k+"="+strings.Trim(string(value), `"`))
		}
		sort.Strings(words)
		lines = append(lines, what+": "+strings.Join(words, " "))
	}
	return lines, nil
}

// Leftovers lists the host's rules and routes that carry multihomed's protocol, and its nftables
// table.
func (h *Host) Leftovers() ([]string, error) {
	out, err := tableLeft()
	if err != nil {
		return nil, err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("listing rules: %w", err)
		}
		for _, r := range rules {
			if r.Protocol == Ours {
				out = append(out, fmt.Sprintf("%v %v", Family(family), r))
			}
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: Ours}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range routes {
			out = append(out, fmt.Sprintf("%v %v", Family(family), r))
		}
	}
	return out, nil
}

// tableLeft names multihomed's nftables table if it stands.
func tableLeft() (out []string, err error) {
	conn, err := nftables.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	exists, err := answers.NewStore(conn).Exists(context.Background())
	if exists {
		out = append(out, "nftables table "+answers.TableID.String())
	}
	return out, err
}

// delRule removes one rule of a list. The library neither reads a rule's type
// nor tells an absent l3mdev from a table, so a rule that it cannot describe is
// removed by its priority.
func delRule(family int, r netlink.Rule) error {
	r.Family = family
	err := netlink.RuleDel(&r)
	if err != nil {
		byPriority := netlink.NewRule()
		byPriority.Family, byPriority.Priority = family, r.Priority
		err = netlink.RuleDel(byPriority)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("removing rule %v: %w", r, err)
	}
	return nil
}
