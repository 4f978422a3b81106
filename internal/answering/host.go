package answering

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"

	table "multihomed/internal/answers"
	"multihomed/internal/fsutil"
	"multihomed/internal/netconf"
	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// A Host is what the decision depends on besides links.
type Host struct {
	// Forwards says by family whether an interface takes packets for others, Translates whether
	// something translates addresses.
	Forwards, Translates routing.ByFamily[bool]
	// Checks say how interfaces check the sources of IPv4 packets, by name. Others do not care.
	Checks map[string]answers.SourceCheck
	// Off says that the administrator switched all of multihomed off.
	Off bool
}

// trackedCount counts the connections that the kernel tracks in a network namespace.
const trackedCount = "/proc/sys/net/netfilter/nf_conntrack_count"

// mostDigits bounds that file, in bytes.
const mostDigits = 32

// ReadHost reads the facts. Translates asks nf_tables, which does not know the rules of
// iptables-legacy: where connections are tracked, somebody may translate them. Off is [Host.Off].
func ReadHost(ctx context.Context, s *reconcile.Snapshot, translates func(context.Context) (nftables.Translation, error), off bool) (Host, error) {
	conf, err := netconf.Read(ctx)
	if err != nil {
		return Host{}, err
	}
	h := Host{Forwards: conf.Forwards, Checks: map[string]answers.SourceCheck{}, Off: off}
	found, err := translates(ctx)
	if err != nil && !errors.Is(err, nftables.ErrUnsupported) {
		return Host{}, err
	}
	tracked := tracks()
	h.Translates = routing.ByFamily[bool]{found.IPv4 || tracked, found.IPv6 || tracked}
	for plan := range s.Links() {
		if !conf.Strict[plan.Link.Index] || plan.Roles.In(routing.IPv4) != routing.Uplink {
			continue
		}
		check, err := table.SourceCheck(plan.Link.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // It has gone since.
		}
		if err != nil {
			return Host{}, err
		}
		h.Checks[plan.Link.Name] = check
	}
	return h, nil
}

// tracks reports whether the kernel tracks a connection here. Without the module it cannot.
func tracks() bool {
	text, err := fsutil.ReadFile(trackedCount, mostDigits)
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil && n > 0
}
