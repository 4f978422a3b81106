package packaging_test

import (
	"errors"
	"fmt"
	"strings"
)

// scraper asks for the metrics at a port of this host or at a socket in the file system, and prints the
// answer. Perl is on every Debian.
const scraper = `use strict; use IO::Socket::INET; use IO::Socket::UNIX;
my ($where, @fields) = @ARGV;
alarm 20;
my $s = $where =~ m,^/, ? IO::Socket::UNIX->new(Peer => $where) : IO::Socket::INET->new(PeerAddr => "127.0.0.1:$where");
$s or die "connect: $@ $!";
print $s join("\r\n", "GET /metrics HTTP/1.1", "Host: h", @fields, "", "");
print <$s>;`

const scraperPath = "/var/tmp/scraper"

// crowd connects until 400 connections are open that ask nothing, and comes again whenever one is thrown out.
const crowd = `use strict; use IO::Socket::INET; use IO::Select;
my $all = IO::Select->new;
sub come {
  my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:28008") or return;
  print $s "GET /metrics"; $s->flush; $all->add($s);
}
$SIG{PIPE} = "IGNORE"; $| = 1;
come for 1 .. 400;
print "crowded\n";
while (1) { for my $s ($all->can_read) { $all->remove($s); close $s; come; } }`

const crowdPath = "/var/tmp/crowd"

// scrape asks as a user without rights.
func (s *system) scrape(where string, fields ...string) (string, error) {
	return s.Run(s.t.Context(), append([]string{"runuser", "-u", "nobody", "--", "perl", scraperPath, where}, fields...)...)
}

// scraped wants metrics.
func (s *system) scraped(where string, want ...string) {
	s.t.Helper()
	s.eventually(func() error {
		out, err := s.scrape(where, "Accept: application/openmetrics-text; version=1.0.0")
		if err != nil {
			return err
		}
		for _, w := range append(want, "HTTP/1.1 200 OK\r\n", "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n") {
			if !strings.Contains(out, w) {
				return fmt.Errorf("the metrics lack %q:\n%s", w, out)
			}
		}
		if !strings.HasSuffix(strings.TrimSpace(out), "# EOF") {
			return fmt.Errorf("the metrics do not end:\n%s", out)
		}
		return nil
	})
}

// metrics enables the socket unit: it is off before, its processes have no right and still find out what the
// host itself tells, and too many clients cost nobody else anything for long.
func (s *system) metrics() {
	s.t.Helper()
	const socket, port, dropIn = "multihomed-metrics.socket", "28008", "/run/systemd/system/multihomed-metrics.socket.d"
	s.must(s.WriteFile(scraperPath, []byte(scraper), 0o644))
	if out, _ := s.Run(s.t.Context(), "systemctl", "is-enabled", socket); strings.TrimSpace(out) != "disabled" {
		s.t.Errorf("after the installation the socket is %s", out)
	}
	if out, err := s.scrape(port); err == nil || !strings.Contains(fmt.Sprint(out, err), "refused") {
		s.t.Errorf("somebody answers: %v\n%s", err, out)
	}
	s.run("systemctl", "enable", "--now", socket)
	s.scraped(port, "\nmultihomed_up 1\n", "\nmultihomed_ready 1\n", fmt.Sprintf("\nmultihomed_links{role=\"uplink\"} %d\n", len(s.isps)), "\nmultihomed_passes_total ")
	s.run("systemd-analyze", "security", "--no-pager", "--threshold=12", "multihomed-metrics.service")

	// Scrapes fill no journal; who asks nothing is told of.
	s.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port+"; exec 3>&-")
	s.eventually(func() error {
		out, err := s.Run(s.t.Context(), "journalctl", "--no-pager", "-o", "cat", "-u", "multihomed-metrics.service")
		if err != nil {
			return err // There is no such unit in the journal yet.
		}
		if !strings.Contains(out, "multihomectl: reading a request: EOF") {
			return errors.New("the journal lacks the client that asked nothing:\n" + out)
		}
		if strings.Contains(out, "Metrics of multihomed") || strings.Contains(out, "Deactivated") {
			return errors.New("the journal has every scrape:\n" + out)
		}
		return nil
	})

	// A user who holds more connections than have a place keeps nobody out.
	s.must(s.WriteFile(crowdPath, []byte(crowd), 0o644))
	others, err := s.Start("runuser", "-u", "nobody", "--", "perl", crowdPath)
	s.must(err)
	s.must(others.WaitOutput(s.t.Context(), "crowded"))
	for range 5 {
		if out, err := s.scrape(port); err != nil || !strings.Contains(out, "\nmultihomed_up 1\n") {
			s.t.Errorf("in a crowd: %v\n%s", err, out)
		}
	}
	s.must(others.Kill())

	s.run("systemctl", "stop", "multihomed.service")
	s.scraped(port, "\nmultihomed_up 0\n", fmt.Sprintf("\nmultihomed_links{role=\"uplink\"} %d\n", len(s.isps)), "\nmultihomed_table_range_size ")
	s.run("systemctl", "start", "multihomed.service")
	s.active()

	s.run("sh", "-ec", "mkdir -p "+dropIn+"; printf '[Socket]\\nListenStream=\\nListenStream=/run/multihomed-metrics.sock\\n' >"+dropIn+"/unix.conf; systemctl daemon-reload; systemctl restart "+socket)
	s.scraped("/run/multihomed-metrics.sock", "\nmultihomed_up 1\n")
	s.run("sh", "-ec", "rm -r "+dropIn+"; systemctl daemon-reload; systemctl restart "+socket+"; rm -f /run/multihomed-metrics.sock")
	s.scraped(port, "\nmultihomed_up 1\n")
	s.eventually(func() error {
		if out, _ := s.Run(s.t.Context(), "systemctl", "is-active", "multihomed-metrics.service"); strings.TrimSpace(out) != "inactive" {
			return errors.New("without clients the process is " + out)
		}
		return nil
	})
}
