package packaging_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
	"multihomed/test/lab"
)

// asker connects to a socket, sends requests in hexadecimal digits, and prints as many reports as it is
// told. Perl is on every Debian.
const asker = `use Socket;
my ($path, $reports, @requests) = @ARGV;
alarm 20;
socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die "socket: $!";
connect($s, pack_sockaddr_un($path)) or die "connect: $!";
for (@requests) { send($s, pack("H*", $_), 0) or die "send: $!" }
for (1..$reports) { defined recv($s, my $b, 65536, 0) or die "recv: $!"; length $b or die "closed"; print unpack("H*", $b), "\n" }
print qx(cat /proc/\$(systemctl show -P MainPID multihomed-prober.service)/status) unless @requests > 1;`

const askerPath = "/var/tmp/asker"

// reloads makes several reloads in a row, each of which changes the configuration and ends a prober:
// while systemd starts the next one, as slowly as a small machine does, nobody says that it is away.
func (s *system) reloads() {
	s.t.Helper()
	const file, dropIn = "/etc/multihomed/multihomed.toml", "/run/systemd/system/multihomed-prober.service.d"
	s.run("sh", "-ec", "mkdir -p "+dropIn+"; printf '[Service]\\nExecStartPre=/bin/sleep 0.7\\n' >"+dropIn+"/slow.conf; systemctl daemon-reload")
	out := s.run("sh", "-ec", "for n in 1 2 3 4 5 6 7 8; do echo \"container_prefix_length = $n\" >"+file+"; systemctl reload multihomed; "+
		"multihomectl status --json || true; done; for n in $(seq 30); do multihomectl status --json || true; sleep 0.1; done")
	if strings.Contains(out, "prober_error") || !strings.Contains(out, `"uplinks": [`) {
		s.t.Errorf("after reloads, status says:\n%s", out)
	}
	s.run("sh", "-ec", "rm -r "+file+" "+dropIn+"; systemctl daemon-reload; systemctl reload multihomed")
}

// prober asks the installed prober as the daemon does: in its sandbox it can send probes by both links
// and look at connections, and when its client goes, it ends.
func (s *system) prober() {
	s.t.Helper()
	// The daemon would be the client, and others would wait for its end.
	s.run("systemctl", "stop", "multihomed.service")
	defer s.run("systemctl", "start", "multihomed.service")
	s.must(s.WriteFile(askerPath, []byte(asker), 0o644))
	var requests []string
	add := func(r wire.Request) {
		datagram, err := wire.EncodeRequest(nil, r)
		s.must(err)
		requests = append(requests, hex.EncodeToString(datagram))
	}
	look := wire.Look{ID: 100}
	for n, isp := range s.isps {
		index, err := strconv.Atoi(s.run("cat", "/sys/class/net/"+isp.Link().Name()+"/ifindex"))
		s.must(err)
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			// Nobody listens there: a reset is an answer.
			add(wire.Probe{
				ID: uint64(10*n) + uint64(f), Kind: wire.TCP, Device: index,
				Source: netip.MustParseAddr(s.address(isp, f)), Target: netip.AddrPortFrom(lab.InternetAddr(f), 9999),
			})
		}
		look.Sources = append(look.Sources, wire.Source{Addr: netip.MustParseAddr(s.address(isp, lab.IPv4)), Device: index})
		look.Devices = append(look.Devices, index)
	}
	add(look)
	// Two reports of each probe, one of the look.
	probes := 2 * len(s.isps)
	out := s.run(slices.Concat([]string{"runuser", "-u", "multihomed", "--", "perl", askerPath, client.DefaultPath, strconv.Itoa(2*probes + 1)}, requests)...)
	lines := strings.Split(out, "\n")
	answered := 0
	for _, line := range lines {
		datagram, err := hex.DecodeString(line)
		s.must(err)
		r, _, err := wire.DecodeReport(datagram)
		s.must(err)
		switch r := r.(type) {
		case wire.Sent:
		case wire.Answered:
			answered++
		case wire.Looked:
			for i, d := range r.Devices {
				if d.TxPackets == 0 {
					s.t.Errorf("no packet of device %d", i)
				}
			}
		default:
			s.t.Errorf("%T %+v", r, r)
		}
	}
	if answered != probes {
		s.t.Errorf("%d answers of %d probes:\n%s", answered, probes, out)
	}
	s.eventually(func() error {
		if state := s.run("systemctl", "show", "-P", "ActiveState", "multihomed-prober.service"); state != "inactive" {
			return fmt.Errorf("without a client it is %s", state)
		}
		return nil
	})

	// It has no right, and nobody but root and the daemon may ask it.
	ping, err := wire.EncodeRequest(nil, wire.Ping{ID: 1})
	s.must(err)
	status := s.run("perl", askerPath, client.DefaultPath, "1", hex.EncodeToString(ping))
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			s.t.Errorf("the prober's process lacks %q:\n%s", want, status)
		}
	}
	if strings.Contains(status, "Uid:\t0") {
		s.t.Errorf("the prober is root:\n%s", status)
	}
	if out, err := s.Run(s.t.Context(), "runuser", "-u", "nobody", "--", "perl", askerPath, client.DefaultPath, "0"); err == nil || !strings.Contains(fmt.Sprint(out, err), "connect: Permission denied") {
		s.t.Errorf("nobody connects: %v\n%s", err, out)
	}
}
