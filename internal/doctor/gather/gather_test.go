package gather_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"multihomed/internal/doctor"
	"multihomed/internal/doctor/gather"
	"multihomed/internal/nftables"
	"multihomed/internal/status"
	"multihomed/internal/status/view/viewtest"
	"multihomed/nm"
	"multihomed/routing"
)

func root(pairs ...string) fstest.MapFS {
	files := fstest.MapFS{}
	for i := 0; i+1 < len(pairs); i += 2 {
		files[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
	}
	return files
}

// TestFiles: what is read of files.
func TestFiles(t *testing.T) {
	t.Parallel()
	v := viewtest.Of(viewtest.WAN(0), viewtest.WAN(1))
	v.Daemon.PID = 42
	server := netip.MustParseAddr("192.0.2.53")
	v.NM.Devices = map[string]nm.Device{"wan1": {DNS: map[routing.Family]nm.DNS{routing.IPv4: {Servers: []netip.Addr{server}}}}}
	files := root(
		"proc/sys/net/ipv4/conf/wan1/rp_filter", "1\n",
		"proc/sys/net/ipv4/ip_forward", "x\n",
		"proc/sys/kernel/osrelease", "6.1\n",
		"boot/config-6.1", "CONFIG_IP_MULTIPLE_TABLES=y\nCONFIG_NF_TABLES=m\n# CONFIG_IPV6_SUBTREES is not set\n",
		"proc/net/rt6_stats", "0009 0006 0017 0007 0000 00ff 0000\n",
		"etc/resolv.conf", "# by hand\nnameserver 192.0.2.53\nnameserver x\noptions edns0\nnameserver 192.0.2.53\n",
		"proc/42/net/netlink", "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n0 0 42 0 0 0 0 2 5 77\n0 0 43 0 0 0 0 2 9 78\n",
	)
	files["proc/42/fd/3"] = &fstest.MapFile{Data: []byte("socket:[77]"), Mode: fs.ModeSymlink | 0o777}
	h := gather.Read(t.Context(), gather.Of(v), files)
	if h.Parameters["net/ipv4/conf/wan1/rp_filter"] != 1 {
		t.Errorf("parameters are %v", h.Parameters)
	}
	if _, known := h.Parameters["net/ipv4/ip_forward"]; known {
		t.Error("what is no number is not known")
	}
	if !slices.Contains(h.Missing, "CONFIG_IPV6_SUBTREES") || slices.Contains(h.Missing, "CONFIG_NF_TABLES") {
		t.Errorf("missing are %v", h.Missing)
	}
	if h.Entries6 != 255 {
		t.Errorf("%d entries", h.Entries6)
	}
	if !slices.Equal(h.Nameservers, []netip.Addr{server}) || !slices.Equal(h.NamedBy[server], []string{"wan1"}) {
		t.Errorf("servers are %v, named by %v", h.Nameservers, h.NamedBy)
	}
	if h.Dropped != 5 {
		t.Errorf("%d messages were lost", h.Dropped)
	}
}

// TestNameWithoutUTF8: the parameters of such an interface are not read, and all others are.
func TestNameWithoutUTF8(t *testing.T) {
	t.Parallel()
	source := gather.Of(viewtest.Of())
	source.Links = []string{"x\xff", "wan1"}
	h := gather.Read(t.Context(), source, root("proc/sys/net/ipv4/conf/wan1/rp_filter", "1\n"))
	i := slices.IndexFunc(h.Unlooked, func(u doctor.Unlooked) bool { return strings.Contains(u.Why, "their names are no UTF-8") })
	if i < 0 || slices.Contains(h.Unlooked[i].Codes, doctor.NeighborTable) || h.Parameters["net/ipv4/conf/wan1/rp_filter"] != 1 {
		t.Errorf("not looked: %+v", h.Unlooked)
	}
}

// TestKernelConfig: where it comes from, and what is said without one.
func TestKernelConfig(t *testing.T) {
	t.Parallel()
	v := viewtest.Of()
	said := func(h doctor.Host) bool {
		return slices.ContainsFunc(h.Unlooked, func(u doctor.Unlooked) bool { return slices.Contains(u.Codes, doctor.KernelOption) })
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte("CONFIG_IP_MULTIPLE_TABLES=y\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if h := gather.Read(t.Context(), gather.Of(v), root("proc/config.gz", packed.String())); said(h) || slices.Contains(h.Missing, "CONFIG_IP_MULTIPLE_TABLES") || !slices.Contains(h.Missing, "CONFIG_NF_TABLES") {
		t.Errorf("packed: missing %v, not looked %v", h.Missing, h.Unlooked)
	}
	for name, files := range map[string]fstest.MapFS{"nothing": root(), "damaged": root("proc/config.gz", "x")} {
		if h := gather.Read(t.Context(), gather.Of(v), files); !said(h) || len(h.Missing) > 0 {
			t.Errorf("%s: missing %v, not looked %v", name, h.Missing, h.Unlooked)
		}
	}
}

// TestKernelOptions: a kernel that lacks one option has one finding, and one that has all has none.
func TestKernelOptions(t *testing.T) {
	t.Parallel()
	for _, without := range append(doctor.Options(), "") {
		var config strings.Builder
		for _, name := range doctor.Options() {
			if name == without {
				fmt.Fprintf(&config, "# %s is not set\n", name)
			} else {
				fmt.Fprintf(&config, "%s=y\n", name)
			}
		}
		h := gather.Read(t.Context(), gather.Of(viewtest.Of()), root("proc/sys/kernel/osrelease", "6.1\n", "boot/config-6.1", config.String()))
		found := doctor.Diagnose(status.Status{}, h).Of(doctor.KernelOption)
		if without == "" && len(found) > 0 || without != "" && (len(found) != 1 || found[0].Object != without) {
			t.Errorf("without %q: found %+v", without, found)
		}
	}
}

// TestAgents: each is known by what starts it, and gone after its command.
func TestAgents(t *testing.T) {
	t.Parallel()
	link := func(files fstest.MapFS, name, target string) fstest.MapFS {
		files[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink | 0o777}
		return files
	}
	const unit = "usr/lib/systemd/system/nm-cloud-setup.timer"
	const policy = "usr/lib/systemd/system/policy-routes@.service"
	const timer = "[Timer]\n[Install]\nWantedBy=timers.target\n"
	for _, c := range []struct {
		name  string
		files fstest.MapFS
		want  string
	}{
		{"enabled", link(root(unit, timer, "run/systemd/system/x", ""), "etc/systemd/system/timers.target.wants/nm-cloud-setup.timer", "/"+unit), "nm-cloud-setup"},
		{"disabled", root(unit, timer, "run/systemd/system/x", ""), ""},
		{"ec2", root(policy, "[Service]\n"), "amazon-ec2-net-utils"},
		{"ec2, masked", link(root(policy, "[Service]\n"), "etc/systemd/system/policy-routes@.service", "/dev/null"), ""},
		{"sysvinit", root("etc/sysconfig/network-scripts/ec2net-functions", ""), "ec2-net-utils"},
		{"cloud-init", root("etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    eth0:\n      routing-policy:\n      - from: 10.0.0.1\n"), "cloud-init"},
		{"netplan", root("etc/netplan/10-own.yaml", "      routing-policy: [{from: 10.0.0.1}]\n"), "netplan"},
		{"netplan without", root("etc/netplan/10-own.yaml", "network:\n  # routing-policy: none\n"), ""},
	} {
		var names []string
		for _, a := range gather.Read(t.Context(), gather.Of(viewtest.Of()), c.files).Agents {
			names = append(names, a.Name)
		}
		if c.want == "" && len(names) > 0 || c.want != "" && !slices.Equal(names, []string{c.want}) {
			t.Errorf("%s: %v, want %q", c.name, names, c.want)
		}
	}
}

// TestFlatten: what leads to a rule counts as part of it, and chains that call each other end.
func TestFlatten(t *testing.T) {
	t.Parallel()
	table := nftables.TableID{Family: nftables.INet, Name: "fw"}
	jump := func(chain string) nftables.Expr {
		return nftables.Decide{Verdict: nftables.Verdict{Code: nftables.Jump, Chain: chain}}
	}
	name := func(key nftables.MetaKey, op nftables.CmpOp, value nftables.Value) []nftables.Expr {
		return []nftables.Expr{nftables.MetaLoad{Key: key, Dest: nftables.Reg1}, nftables.Cmp{Op: op, Source: nftables.Reg1, Value: value}}
	}
	chains := []nftables.Standing{
		{Table: table, IsBase: true, Chain: nftables.Chain{
			Name: "post", Base: nftables.Base{Type: nftables.NAT, Hook: nftables.Postrouting},
			Rules: []nftables.Rule{
				{Handle: 1, Exprs: append(name(nftables.MetaOIFName, nftables.Equal, nftables.IfNamePrefix("wan")), jump("zone"))},
				{Handle: 2, Exprs: []nftables.Expr{jump("loop")}},
			},
		}},
		{Table: table, Chain: nftables.Chain{Name: "zone", Rules: []nftables.Rule{{Handle: 3, Exprs: slices.Concat(
			nftables.IPv4Only(), name(nftables.MetaOIFName, nftables.NotEqual, nftables.IfName("wan1")),
			// By index, and for one protocol.
			name(nftables.MetaOIF, nftables.Equal, nftables.Uint32(7)), name(nftables.MetaL4Proto, nftables.Equal, nftables.Uint8(6)),
			[]nftables.Expr{
				nftables.IPv4Saddr,
				nftables.Bitwise{Source: nftables.Reg1, Dest: nftables.Reg1, Mask: "\xff\xff\xf0\x00", Xor: "\x00\x00\x00\x00"},
				nftables.Cmp{Source: nftables.Reg1, Value: "\x0a\x01\x10\x00"},
				nftables.Immediate{Dest: nftables.Reg1, Value: "\xc0\x00\x02\x07"},
				nftables.Translate{Kind: nftables.SNAT, Source: nftables.Reg1},
			},
		)}}}},
		{Table: table, Chain: nftables.Chain{Name: "loop", Rules: []nftables.Rule{{Exprs: []nftables.Expr{jump("loop")}}, {Exprs: []nftables.Expr{jump("loop")}}}}},
	}
	found := gather.Flatten(chains, map[uint32]string{7: "wan7"})
	if len(found) != 1 {
		t.Fatalf("found %+v", found)
	}
	r := found[0]
	if r.String() != "inet fw zone handle 3" || r.Base != "post" || r.Deed != doctor.SNAT || r.To != netip.MustParseAddr("192.0.2.7") || !r.IPv4 || r.IPv6 || r.Narrow || !r.Except {
		t.Errorf("found %+v", r)
	}
	// In a table of both families the source is known after the family.
	if r.Source != netip.MustParsePrefix("10.1.16.0/20") {
		t.Errorf("the source is %s", r.Source)
	}
	if !slices.Equal(r.Out, []doctor.Match{{Name: "wan*"}, {Name: "wan1", Not: true}, {Name: "wan7"}}) {
		t.Errorf("out is %v", r.Out)
	}
}
