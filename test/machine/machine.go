package machine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// Config is what can be chosen about a machine.
type Config struct {
	Release string // Bookworm by default; or With more packages
	Name    string // the host name; the release by default
}

// A Machine is a Debian machine with its own disk and network, on or off.
type Machine struct {
	cfg     Config
	dir     string   // everything below, on the lab's private /run
	root    string   // the disk
	parking *network // where links are while the machine is off

	power  sync.Mutex // held while the machine is switched on or off
	nspawn *nspawn    // of a machine that is on; it may have no process 1 yet, or no longer
	cgroup *cgroup    // likewise. Not kept: Linux 6.18 kills what is born in one that was killed before
	closed bool

	mu       sync.Mutex // for what follows; leader and inside are written with both locks held
	leader   *leader    // process 1; nil while the machine is off
	inside   *network   // its network
	links    []string
	programs map[*Process]struct{} // that Run and Start have started and that still run
}

// New makes a machine that is off, with the disk of a freshly installed Debian.
func New(ctx context.Context, cfg Config) (*Machine, error) {
	if cfg.Release == "" {
		cfg.Release = Bookworm
	}
	if cfg.Name == "" {
		cfg.Name, _, _ = strings.Cut(cfg.Release, "+")
	}
	if err := checkBoot(); err != nil {
		return nil, err
	}
	lower, err := Root(ctx, cfg.Release)
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, programs: map[*Process]struct{}{}}
	if err := m.open(ctx, lower); err != nil {
		return nil, errors.Join(fmt.Errorf("making machine %s: %w", cfg.Name, err), m.Close())
	}
	return m, nil
}

func (m *Machine) open(ctx context.Context, lower string) error {
	var err error
	if m.dir, err = os.MkdirTemp("", "machine-"); err != nil {
		return err
	}
	if err := m.mountRoot(ctx, lower); err != nil {
		return err
	}
	// What the installation of a machine makes its own.
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	for name, content := range map[string]string{
		"etc/machine-id": hex.EncodeToString(id[:]), // DHCP clients are told apart by it
		"etc/hostname":   m.cfg.Name,
	} {
		if err := os.WriteFile(filepath.Join(m.root, name), []byte(content+"\n"), 0o644); err != nil {
			return err
		}
	}
	m.parking, err = newNetwork()
	return err
}

// mountRoot gives the machine a disk with the contents of lower. What is written to
// it stays in memory.
func (m *Machine) mountRoot(ctx context.Context, lower string) error {
	disk := filepath.Join(m.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		return err
	}
	// A separate tmpfs, because the lab's has no set-user-ID programs and no devices.
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting the disk: %w", err)
	}
	m.root = filepath.Join(disk, "root")
	upper, work := filepath.Join(disk, "upper"), filepath.Join(disk, "work")
	for _, dir := range []string{m.root, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	err := unix.Mount("overlay", m.root, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work)
	if err == nil {
		return nil
	}
	if out, cpErr := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", lower+"/.", m.root).CombinedOutput(); cpErr != nil {
		return fmt.Errorf("copying %s: %w: %s (an overlay is not possible: %w)", lower, cpErr, lab.Tail(string(out), 5), err)
	}
	return nil
}

// timeouts are for callers whose context has no deadline. They are generous:
// only a failure takes them.
const (
	bootTimeout     = 2 * time.Minute
	shutdownTimeout = 2 * time.Minute
	killTimeout     = 20 * time.Second
)

// PowerOn boots the machine and returns when its system is running, and
// NetworkManager answers if it is among what runs. A unit that failed is an error
// with the end of the journal; the machine is on nevertheless. A machine that went
// off by itself, or wanted to be rebooted, may be switched on again.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.powerOn(ctx)
}

func (m *Machine) powerOn(ctx context.Context) error {
	ctx, cancel := lab.Within(ctx, bootTimeout)
	defer cancel()
	if m.nspawn != nil {
		select {
		case <-m.nspawn.done:
			if err := m.off(); err != nil {
				return fmt.Errorf("booting machine %s: %w", m.cfg.Name, err)
			}
		default:
			return fmt.Errorf("booting machine %s: it is on", m.cfg.Name)
		}
	}
	group, err := newCgroup(ctx)
	if err != nil {
		return fmt.Errorf("booting machine %s: %w", m.cfg.Name, err)
	}
	n, err := m.startNspawn(group)
	if err != nil {
		return fmt.Errorf("booting machine %s: %w", m.cfg.Name, errors.Join(err, group.close()))
	}
	m.nspawn, m.cgroup = n, group
	fail := func(err error) error {
		return fmt.Errorf("booting machine %s: %w; its console ends:\n%s", m.cfg.Name, err, lab.Tail(n.console.String(), 20))
	}
	value, err := n.waitNote(ctx, "X_NSPAWN_LEADER_PID=")
	var l *leader
	var inside *network
	if err == nil {
		if l, inside, err = openLeader(value); err != nil {
			// It has ended, and nspawn is about to say why.
			select {
			case <-n.done:
			case <-ctx.Done():
			}
		}
	}
	if err != nil {
		killErr := m.kill()
		return errors.Join(fail(err), killErr) // in this order, for the whole console
	}
	m.mu.Lock()
	m.leader, m.inside = l, inside
	m.mu.Unlock()
	if _, err := n.waitNote(ctx, "READY=1"); err != nil {
		select {
		case <-n.done:
			return errors.Join(fail(err), m.off())
		default:
			return fail(m.diagnose(err))
		}
	}
	if out, err := m.Run(ctx, "systemctl", "is-system-running", "--wait"); err != nil {
		return fail(m.diagnose(fmt.Errorf("the system is %s (%w)", strings.TrimSpace(out), err)))
	}
	// NetworkManager is started for systemd when it has its name on the bus, and
	// only then asks for hostnamed. A shutdown in between takes 25 s, as hostnamed
	// goes first and NetworkManager waits for it.
	if _, err := m.Run(ctx, "sh", "-c", "! systemctl -q is-active NetworkManager || nmcli -t general"); err != nil {
		return fail(m.diagnose(fmt.Errorf("NetworkManager does not answer: %w", err)))
	}
	return nil
}

// diagnose adds to an error what the machine says about it.
func (m *Machine) diagnose(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var text strings.Builder
	ask := func(args ...string) string {
		out, runErr := m.Run(ctx, args...)
		if runErr != nil {
			out = runErr.Error()
		}
		fmt.Fprintf(&text, "\n# %s\n%s", strings.Join(args, " "), strings.TrimSpace(out))
		return out
	}
	failed := ask("systemctl", "list-units", "--failed", "--plain", "--no-legend")
	ask("systemctl", "list-jobs", "--no-legend")
	for line := range strings.Lines(failed) {
		if unit, _, ok := strings.Cut(line, " "); ok {
			ask("journalctl", "-b", "-n", "20", "-o", "cat", "--no-pager", "-u", unit)
		}
	}
	ask("journalctl", "-b", "-n", "30", "-o", "short-precise", "--no-pager")
	return fmt.Errorf("%w%s", err, text.String())
}

// startNspawn starts the container with the links that are parked.
func (m *Machine) startNspawn(group *cgroup) (*nspawn, error) {
	if err := checkBoot(); err != nil {
		return nil, err
	}
	args := []string{
		"--quiet", "--register=no", "--keep-unit", // there is no systemd out here to register with
		"--boot", "--notify-ready=yes",
		"--machine=" + m.cfg.Name, "--directory=" + m.root,
		"--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
		"--private-network",
		// multihomed-binder loads BPF programs; it is in no user namespace.
		"--capability=CAP_BPF", "--system-call-filter=bpf",
	}
	m.mu.Lock()
	for _, name := range m.links {
		args = append(args, "--network-interface="+name) // there before process 1 is
	}
	m.mu.Unlock()
	return start(args, m.parking, group, filepath.Join(m.dir, "notify"))
}

// Signals of process 1, systemd(1).
const (
	sigPowerOff = syscall.Signal(34 + 4) // SIGRTMIN+4
	sigReboot   = syscall.Signal(34 + 5) // SIGRTMIN+5
)

// exitReboot is nspawn's status of a machine that wants to be booted again.
const exitReboot = 133

// PowerOff shuts the machine down cleanly, after it has killed the programs of Run and Start. If
// the context ends before it is off, it is still shutting down: Kill it.
func (m *Machine) PowerOff(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	if err := m.shutdown(ctx, sigPowerOff, 0); err != nil {
		return fmt.Errorf("switching machine %s off: %w", m.cfg.Name, err)
	}
	return nil
}

// Reboot is PowerOff and PowerOn, except that the machine knows that it is rebooted.
// Its disk and its links stay, everything else restarts.
func (m *Machine) Reboot(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	if err := m.shutdown(ctx, sigReboot, exitReboot); err != nil {
		return fmt.Errorf("rebooting machine %s: %w", m.cfg.Name, err)
	}
	return m.powerOn(ctx)
}

// Kill cuts the power: no process of the machine sees it coming. A machine that is
// off stays so.
func (m *Machine) Kill() error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.kill()
}

// shutdown asks process 1 to end and waits for nspawn to do so with a status.
func (m *Machine) shutdown(ctx context.Context, s syscall.Signal, status int) error {
	ctx, cancel := lab.Within(ctx, shutdownTimeout)
	defer cancel()
	n := m.nspawn
	if n == nil || m.leader == nil {
		return errors.New("it is off")
	}
	// Their parent is this process and not process 1: it would wait for 10 s to hear
	// of their end, which it is not told.
	m.mu.Lock()
	programs := slices.Collect(maps.Keys(m.programs))
	m.mu.Unlock()
	for _, p := range programs {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	if err := m.leader.signal(s); err != nil {
		return err
	}
	select {
	case <-n.done:
	case <-ctx.Done():
		return fmt.Errorf("%w; its console ends:\n%s", context.Cause(ctx), lab.Tail(n.console.String(), 20))
	}
	if err := m.off(); err != nil {
		return err
	}
	if got := n.cmd.ProcessState.ExitCode(); got != status {
		return fmt.Errorf("systemd-nspawn ended with status %d and not %d; the console ends:\n%s", got, status, lab.Tail(n.console.String(), 20))
	}
	return nil
}

func (m *Machine) kill() error {
	n := m.nspawn
	if n == nil {
		return nil
	}
	if m.leader != nil {
		// The kernel kills the other processes, too, and nspawn ends cleanly.
		if err := m.leader.signal(unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing machine %s: %w", m.cfg.Name, err)
		}
	} else if err := m.cgroup.kill(); err != nil {
		return fmt.Errorf("killing machine %s: %w", m.cfg.Name, err)
	}
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-n.done:
	case <-timer.C:
		return fmt.Errorf("killing machine %s: systemd-nspawn still runs", m.cfg.Name)
	}
	return m.off()
}

// off takes the links out of a machine that nspawn has ended, and removes its control
// group. Links that were removed in there are forgotten.
func (m *Machine) off() error {
	errs := []error{m.awaitPrograms()}
	m.mu.Lock()
	defer m.mu.Unlock()
	errs = append(errs, m.cgroup.close())
	m.nspawn, m.cgroup = nil, nil
	if m.leader == nil {
		return errors.Join(errs...)
	}
	var links []string
	for _, name := range m.links {
		// nspawn has moved those back itself that were there when it started.
		found, err := moveLink(name, m.inside.nl, m.parking.ns)
		if err == nil && !found {
			_, err = m.parking.nl.LinkByName(name)
			found = err == nil
			if isGone(err) {
				err = nil
			}
		}
		errs = append(errs, err)
		if found {
			links = append(links, name)
		}
	}
	m.links = links
	m.inside.close()
	m.leader.close()
	m.leader, m.inside = nil, nil
	return errors.Join(errs...)
}

// awaitPrograms waits for the ends of those of Run and Start: the kernel has killed them with process 1,
// but they are this process's children.
func (m *Machine) awaitPrograms() error {
	m.mu.Lock()
	programs := slices.Collect(maps.Keys(m.programs))
	m.mu.Unlock()
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	for _, p := range programs {
		select {
		case <-p.done:
		case <-timer.C:
			return fmt.Errorf("%s outlives machine %s", strings.Join(p.args, " "), m.cfg.Name)
		}
	}
	return nil
}

// MoveLink moves a link, such as the host's end of a provider's, from the lab's host
// into the machine: at once, or before the next boot. It is there after a reboot,
// too, with nothing configured. The machine removes it when it closes.
func (m *Machine) MoveLink(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := m.parking
	if m.inside != nil {
		to = m.inside
	}
	found, err := moveLink(name, &netlink.Handle{}, to.ns)
	if err == nil && !found {
		err = fmt.Errorf("there is no link %s in the lab", name)
	}
	if err != nil {
		return fmt.Errorf("giving machine %s a link: %w", m.cfg.Name, err)
	}
	if !slices.Contains(m.links, name) {
		m.links = append(m.links, name)
	}
	return nil
}

// Name is the machine's host name.
func (m *Machine) Name() string { return m.cfg.Name }

// Leader is the number of the machine's process 1 in the lab, 0 if it is off.
func (m *Machine) Leader() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leader == nil {
		return 0
	}
	return m.leader.pid
}

// Console is what the machine has written to its console since it was switched on.
func (m *Machine) Console() string {
	m.power.Lock()
	defer m.power.Unlock()
	if m.nspawn == nil {
		return ""
	}
	return m.nspawn.console.String()
}

// Close kills the machine and removes its disk, its links and whatever else it had.
func (m *Machine) Close() error {
	m.power.Lock()
	defer m.power.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	errs := []error{m.kill()}
	if m.parking != nil {
		for _, name := range m.links {
			errs = append(errs, m.parking.removeLink(name))
		}
		m.parking.close()
	}
	if m.root != "" {
		if err := unix.Unmount(m.root, 0); err != nil && !errors.Is(err, unix.EINVAL) { // not an overlay
			errs = append(errs, fmt.Errorf("unmounting %s: %w", m.root, err))
		}
		if err := unix.Unmount(filepath.Dir(m.root), 0); err != nil {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", filepath.Dir(m.root), err))
		}
	}
	if m.dir != "" {
		errs = append(errs, os.RemoveAll(m.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing machine %s: %w", m.cfg.Name, err)
	}
	return nil
}
