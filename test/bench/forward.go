package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/status/socket"
	"multihomed/test/lab"
)

// Forward is what answers and bindings cost, on a host with two providers and a container behind a
// bridge whose UDP port is published. IPv4.
type Forward struct {
	// Alone, Off and On are nanoseconds for each packet of 64 bytes that the container answers to who
	// asked by the link that main prefers, from the container's send(2) to the link: without
	// multihomed, with it and answers switched off, and with answers and the fence.
	Alone Series `json:"alone_ns"`
	Off   Series `json:"off_ns"`
	On    Series `json:"on_ns"`
	// Connects are the cost of a binding.
	Connects []BoundConnect `json:"connects"`
}

// A BoundConnect is what sockets of UDP cost with and without a binding by mark: nanoseconds of CPU
// for the connect and its dissolution, and for opening and closing one.
type BoundConnect struct {
	What    string `json:"what"`
	Connect Series `json:"connect_ns"`
	Socket  Series `json:"socket_ns"`
}

const (
	// publishedPort is the container's, boundMark that of the binding.
	publishedPort = 4242
	boundMark     = 0x10
)

// forwards measures it. Each round has every case once.
func (b *bench) forwards(ctx context.Context, report *Report) error {
	b.progress("forwarded packets and bound connects")
	cfg := lab.HostConfig{NMLogLevel: "WARN", Sysctls: []string{"net.ipv4.ip_forward", "1"}}
	err := b.onHost(ctx, cfg, false, func(x *exchange) error {
		for n := range 2 {
			cfg := lab.DefaultISP(n)
			cfg.IPv6 = netip.Prefix{}
			isp, err := x.host.NewISP(ctx, cfg)
			if err != nil {
				return err
			}
			x.isps, x.links = append(x.isps, isp), append(x.links, isp.Link())
		}
		return nil
	}, func(x *exchange) (err error) {
		report.Forward, err = x.forwards(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("forwarded packets: %w", err)
	}
	return nil
}

func (x *exchange) forwards(ctx context.Context) (*Forward, error) {
	container, err := x.publish(ctx)
	if err != nil {
		return nil, err
	}
	p := &publication{exchange: x, container: container}
	if err := p.open(ctx); err != nil {
		return nil, err
	}
	defer p.close()
	var alone, off, on []time.Duration
	kinds := []struct {
		what    string
		mark    uint32
		connect []time.Duration
		socket  []time.Duration
	}{{what: "without multihomed"}, {what: "with a binding by another mark"}, {what: "bound by its mark", mark: boundMark}}
	measure := func(kind int) error {
		k := &kinds[kind]
		connect, err := connectsBy(netip.IPv4Unspecified(), k.mark, x.connect)
		if err != nil {
			return err
		}
		opened, err := socketsOpened(k.mark, x.connect)
		k.connect, k.socket = append(k.connect, connect), append(k.socket, opened)
		return err
	}
	for range x.starts {
		for _, c := range []struct {
			toml  string
			times *[]time.Duration
			kinds []int
		}{
			{"", &alone, []int{0}},
			{"[answers]\nforwarded = \"no\"\nfence = \"no\"\n", &off, nil},
			{fmt.Sprintf("[[bind]]\nlink = \"wan1\"\nmark = %d\n", boundMark), &on, []int{1, 2}},
		} {
			product := c.toml != ""
			if product {
				if err := x.answering(ctx, c.toml, c.times == &on); err != nil {
					return nil, err
				}
			}
			each, err := p.answer(ctx)
			if err != nil {
				return nil, err
			}
			*c.times = append(*c.times, each)
			for _, kind := range c.kinds {
				if err := measure(kind); err != nil {
					return nil, err
				}
			}
			if product {
				if err := x.daemon.Stop(ctx); err != nil {
					return nil, err
				}
				if _, err := x.ctl(ctx, "flush", "--yes"); err != nil {
					return nil, fmt.Errorf("taking the routing away: %w", err)
				}
			}
		}
	}
	f := &Forward{Alone: nanoseconds(alone), Off: nanoseconds(off), On: nanoseconds(on)}
	for _, k := range kinds {
		f.Connects = append(f.Connects, BoundConnect{k.what, nanoseconds(k.connect), nanoseconds(k.socket)})
	}
	return f, nil
}

// publish makes a container and publishes its port as Docker does.
func (x *exchange) publish(ctx context.Context) (*lab.Namespace, error) {
	bridge, err := x.host.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	if err != nil {
		return nil, err
	}
	container, err := bridge.Container("container", netip.MustParsePrefix("172.17.0.2/16"))
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "rules")
	if err != nil {
		return nil, fmt.Errorf("making a file: %w", err)
	}
	_, err = fmt.Fprintf(file, `table ip nat {
	chain pre {
		type nat hook prerouting priority dstnat
		fib daddr type local udp dport %d dnat to 172.17.0.2
	}
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
	}
}
`, publishedPort)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("writing rules: %w", err)
	}
	_, err = x.host.Run(ctx, "nft", "-f", file.Name())
	return container, err
}

// answering starts the daemon and waits until it has done what its configuration says.
func (x *exchange) answering(ctx context.Context, toml string, on bool) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	x.config = filepath.Join(dir, "multihomed.toml")
	run := filepath.Join(dir, "run")
	text := fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n%s[failover]\nenabled = false\n", dir, run, toml)
	if err := os.WriteFile(x.config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	x.daemon, err = x.host.Start(lab.ProcessConfig{Path: x.options.daemon, Args: []string{"-config", x.config}, Notify: true})
	if err != nil {
		return err
	}
	if _, err := x.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Eventually(ctx, func() error {
		s, err := socket.Ask(ctx, run, true)
		if err != nil {
			return err
		}
		marked := 0
		if s.Answers != nil {
			for _, f := range s.Answers.Families {
				marked += f.Marked
			}
		}
		if marked != map[bool]int{true: 2}[on] {
			return fmt.Errorf("%d addresses are answered by link", marked)
		}
		rules, err := x.host.IP(ctx, "rule", "show", "pref", "9050")
		if err == nil && (rules != "") != on {
			err = fmt.Errorf("the binding is %q", rules)
		}
		return err
	})
}

// A publication is a server in a container and a client of the preferred provider's.
type publication struct {
	*exchange
	container      *lab.Namespace
	server, client int
}

func (p *publication) open(ctx context.Context) error {
	at, err := p.host.WaitAddr(ctx, p.links[0].Name(), lab.IPv4)
	if err != nil {
		return err
	}
	udp := func(fd *int, local netip.Addr, port int) func() error {
		return func() (err error) {
			if *fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return fmt.Errorf("opening a socket: %w", err)
			}
			return unix.Bind(*fd, &unix.SockaddrInet4{Addr: local.As4(), Port: port})
		}
	}
	isp := p.isps[0]
	return errors.Join(
		p.container.Do(udp(&p.server, netip.IPv4Unspecified(), publishedPort)),
		isp.Namespace().Do(udp(&p.client, isp.Client4, 0)),
		unix.Connect(p.client, &unix.SockaddrInet4{Addr: at.As4(), Port: publishedPort}),
	)
}

func (p *publication) close() { _, _ = unix.Close(p.server), unix.Close(p.client) }

// packets are those of one measurement, for each connect of another one.
const packets = 10

// answer lets the container answer one question very often, and returns the time for each packet that
// the link has sent.
func (p *publication) answer(ctx context.Context) (time.Duration, error) {
	message := make([]byte, 64-28)
	if _, err := unix.Write(p.client, message); err != nil {
		return 0, fmt.Errorf("asking: %w", err)
	}
	_, from, err := unix.Recvfrom(p.server, message, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the question: %w", err)
	}
	before, err := sent(p.links[0].Name())
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for range p.connect * packets {
		if err := unix.Sendto(p.server, message, 0, from); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return 0, fmt.Errorf("answering: %w", err)
		}
	}
	took := time.Since(began)
	after, err := sent(p.links[0].Name())
	if err != nil {
		return 0, err
	}
	if after-before < p.connect*packets/2 {
		return 0, fmt.Errorf("of %d packets, %s sent %d", p.connect*packets, p.links[0].Name(), after-before)
	}
	// What the client has no place for was forwarded, too.
	for ctx.Err() == nil {
		if _, _, err := unix.Recvfrom(p.client, message, unix.MSG_DONTWAIT); err != nil {
			break
		}
	}
	return took / time.Duration(after-before), ctx.Err()
}

// sent counts the packets that a link has sent.
func sent(link string) (int, error) {
	text, err := os.ReadFile("/sys/class/net/" + link + "/statistics/tx_packets")
	if err != nil {
		return 0, fmt.Errorf("counting packets: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// socketsOpened is this thread's CPU time for opening and closing a socket, with a mark unless that is 0.
func socketsOpened(mark uint32, n int) (time.Duration, error) {
	before, err := thisThread.read()
	if err != nil {
		return 0, err
	}
	for range n {
		fd, err := markedSocket(mark)
		if err != nil {
			return 0, err
		}
		if err := unix.Close(fd); err != nil {
			return 0, fmt.Errorf("closing a socket: %w", err)
		}
	}
	after, err := thisThread.read()
	return (after - before) / time.Duration(n), err
}

func markedSocket(mark uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a socket: %w", err)
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return 0, errors.Join(fmt.Errorf("marking a socket: %w", err), unix.Close(fd))
		}
	}
	return fd, nil
}

func printForward(out io.Writer, f *Forward) {
	if f == nil {
		return
	}
	rate := func(s Series) string { return fmt.Sprintf("%.0f", 1e9/s.Median) }
	table(out, "Packets a second that a container behind a published UDP port sends to who asked, IPv4, one sender; nanoseconds for each",
		"\tpackets/s\tns\tagainst none", func(line func(...any)) {
			line("without multihomed", rate(f.Alone), f.Alone, times(f.Alone.Median, f.Alone.Median))
			line("answers switched off", rate(f.Off), f.Off, times(f.Off.Median, f.Alone.Median))
			line("answers and fence", rate(f.On), f.On, times(f.On.Median, f.Alone.Median))
		})
	table(out, "A connect of a UDP socket and its dissolution, and opening and closing one, with a binding by mark, 2 links, IPv4, nanoseconds of CPU",
		"socket\tconnect\tagainst none\topen and close\tagainst none", func(line func(...any)) {
			for _, c := range f.Connects {
				line(c.What, c.Connect, times(c.Connect.Median, f.Connects[0].Connect.Median), c.Socket, times(c.Socket.Median, f.Connects[0].Socket.Median))
			}
		})
}
