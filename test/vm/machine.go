package vm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/machine"
	"multihomed/test/vm/internal/wire"
)

// Config is what can be chosen about a machine.
type Config struct {
	Release string   // machine.Bookworm by default
	Name    string   // the host name; the release by default
	Env     []string // of all commands, as KEY=value
	Out     string   // a directory of the host that the machine may write to, at the same path
	Memory  int      // in MiB; 2048 by default
	CPUs    int      // 2 by default
}

// A Machine is a virtual machine, on or off.
type Machine struct {
	name  string
	cfg   Config
	whole bool
	env   []string
	dir   string // where commands run
	hw    hardware

	power sync.Mutex // held while it is switched on or off
	mu    sync.Mutex
	on    *session // nil while it is off

	built scratch // what Test has built
}

// Bounds for callers whose context has no deadline. They are generous: only a
// failure takes them.
const (
	bootTimeout     = 4 * time.Minute
	shutdownTimeout = 2 * time.Minute
)

// diskSize is that of a whole Debian, in bytes; only what is written takes space.
const diskSize = 8 << 30

// Start boots the kernel of a release over the host's file tree, which takes a few
// seconds: the machine sees every file of the host and what it writes stays in its
// memory. There is no service manager; commands are children of a small agent.
// Files that are written on the host later are seen unless the machine has looked
// for them before.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	m := newMachine(cfg)
	dir, err := os.Getwd()
	if err != nil {
		return nil, m.failed("starting", err)
	}
	m.dir = dir
	m.env = append([]string{
		"PATH=" + os.Getenv("PATH") + ":" + lab.SearchPath, "HOME=/root", "USER=root", "LOGNAME=root",
		"LC_ALL=C.UTF-8", slowEnv + "=" + slow,
	}, cfg.Env...)
	if err := m.prepare(ctx, "/"); err != nil {
		return nil, m.failed("starting", err)
	}
	if err := m.PowerOn(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Boot boots a whole Debian, as package machine makes it, on its own kernel and
// with systemd as process 1. It returns when the system is running; a unit that
// failed is an error with the end of the journal. What the machine writes is on its
// own disk, which is there after a reboot and gone after Close.
func Boot(ctx context.Context, cfg Config) (*Machine, error) {
	m := newMachine(cfg)
	m.whole, m.dir = true, "/"
	m.env = append([]string{
		"PATH=" + lab.SearchPath, "HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh",
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0",
	}, cfg.Env...)
	root, err := machine.Root(ctx, m.cfg.Release)
	if err != nil {
		return nil, m.failed("booting", err)
	}
	if err := m.prepare(ctx, root); err != nil {
		return nil, m.failed("booting", err)
	}
	if err := m.PowerOn(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func newMachine(cfg Config) *Machine {
	if cfg.Release == "" {
		cfg.Release = machine.Bookworm
	}
	if cfg.Name == "" {
		cfg.Name = cfg.Release
	}
	if cfg.Memory == 0 {
		cfg.Memory = 2048
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	return &Machine{name: cfg.Name, cfg: cfg}
}

func (m *Machine) failed(what string, err error) error {
	return fmt.Errorf("%s machine %s: %w", what, m.name, err)
}

// prepare makes everything but the machine.
func (m *Machine) prepare(ctx context.Context, root string) error {
	required := []requirement{{"qemu-system-x86_64", "qemu-system-x86"}}
	if m.whole {
		required = append(required, requirement{"mkfs.ext4", "e2fsprogs"})
	}
	if err := checkPrograms(required...); err != nil {
		return err
	}
	k, err := kernelOf(ctx, m.cfg.Release)
	if err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	boot := wire.Boot{Whole: m.whole, Disk: m.whole, Out: m.cfg.Out, Hostname: m.name, ID: hex.EncodeToString(id[:])}
	if boot.Out != "" {
		if boot.Out, err = filepath.Abs(boot.Out); err != nil {
			return err
		}
	}
	m.hw = hardware{
		memory: m.cfg.Memory, cpus: m.cfg.CPUs, kernel: k.image, root: root, modules: k.modules, out: boot.Out,
	}
	if m.hw.initrd, err = initrd(k, boot); err != nil {
		return err
	}
	if m.whole {
		m.hw.disk, err = newDisk(ctx)
	}
	return err
}

// newDisk makes a disk with an empty ext4. It has no name, so that nothing is left
// of it.
func newDisk(ctx context.Context) (*os.File, error) {
	fd, err := unix.Open(scratchDir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making a disk in %s: %w", scratchDir, err)
	}
	disk := os.NewFile(uintptr(fd), "disk")
	err = disk.Truncate(diskSize)
	if err == nil {
		_, err = command(ctx, "/", "mkfs.ext4", "-q", "-F", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a disk: %w", err), disk.Close())
	}
	return disk, nil
}

// Name is the machine's host name.
func (m *Machine) Name() string { return m.name }

// session is what the machine is while it is on.
func (m *Machine) session() (*session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on == nil {
		return nil, fmt.Errorf("machine %s is off", m.name)
	}
	return m.on, nil
}

// On reports whether the machine is on.
func (m *Machine) On() bool {
	s, err := m.session()
	if err != nil {
		return false
	}
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// PowerOn switches the machine on, and returns as Start and Boot do. A machine that
// went off by itself may be switched on again.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.powerOn(ctx)
}

func (m *Machine) powerOn(ctx context.Context) error {
	ctx, cancel := lab.Within(ctx, bootTimeout)
	defer cancel()
	if m.On() {
		return m.failed("booting", errors.New("it is on"))
	}
	if err := m.kill(); err != nil { // what is left of one that went off by itself
		return m.failed("booting", err)
	}
	s, err := start(m.hw)
	if err != nil {
		return m.failed("booting", err)
	}
	if err := s.waitReady(ctx); err != nil {
		return m.failed("booting", errors.Join(err, s.kill()))
	}
	m.mu.Lock()
	m.on = s
	m.mu.Unlock()
	if !m.whole {
		return nil
	}
	if err := m.waitSystem(ctx); err != nil {
		return m.failed("booting", m.diagnose(err))
	}
	return nil
}

// waitSystem waits for the end of the boot.
func (m *Machine) waitSystem(ctx context.Context) error {
	if state, err := m.Run(ctx, "systemctl", "is-system-running", "--wait"); err != nil {
		return fmt.Errorf("the system is %s: %w", strings.TrimSpace(state), err)
	}
	// NetworkManager is started for systemd when it has its name on the bus, and
	// answers a moment later.
	if r, err := m.Command(ctx, Command{Args: []string{"systemctl", "-q", "is-active", "NetworkManager"}}); err != nil || r.Status != 0 {
		return err // It is not part of this machine, or was disabled.
	}
	_, err := m.Run(ctx, "nmcli", "-t", "general")
	return err
}

// diagnose adds to an error what the machine says about it.
func (m *Machine) diagnose(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var text bytes.Buffer
	for _, args := range [][]string{
		{"systemctl", "list-units", "--failed", "--plain", "--no-legend"},
		{"systemctl", "list-jobs", "--no-legend"},
		{"journalctl", "-b", "-p", "warning", "-n", "40", "--no-pager"},
	} {
		out, runErr := m.Run(ctx, args...)
		if runErr != nil {
			out = runErr.Error()
		}
		fmt.Fprintf(&text, "\n# %s\n%s", strings.Join(args, " "), strings.TrimSpace(out))
	}
	return fmt.Errorf("%w%s", err, text.String())
}

// Shutdown switches the machine off in an orderly way and waits: systemd stops its
// units, a machine without one writes its files.
func (m *Machine) Shutdown(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.shutdown(ctx, "poweroff")
}

func (m *Machine) shutdown(ctx context.Context, how string) error {
	ctx, cancel := lab.Within(ctx, shutdownTimeout)
	defer cancel()
	s, err := m.session()
	if err != nil {
		return err
	}
	if !m.whole {
		_, err := m.Run(ctx, "sync")
		return errors.Join(err, m.kill())
	}
	// The machine may be off before it has answered.
	if _, err := m.Run(ctx, "systemctl", "--no-block", how); err != nil && !errors.Is(err, errEnded) {
		return m.failed("shutting down", err)
	}
	select {
	case <-s.done:
		return m.kill()
	case <-ctx.Done():
		return m.failed("shutting down", errors.Join(s.failure(context.Cause(ctx)), m.kill()))
	}
}

// Reboot is Shutdown and PowerOn, as `systemctl reboot` does it.
func (m *Machine) Reboot(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	if err := m.shutdown(ctx, "reboot"); err != nil {
		return err
	}
	return m.powerOn(ctx)
}

// Kill takes the machine's power away: nothing is written or told to anybody.
func (m *Machine) Kill() error {
	m.power.Lock()
	defer m.power.Unlock()
	return m.kill()
}

func (m *Machine) kill() error {
	m.mu.Lock()
	s := m.on
	m.on = nil
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.kill()
}

// Close is Kill of a machine that is no longer needed: it also removes its disk and the programs
// that Test has built for it.
func (m *Machine) Close() error {
	err := m.Kill()
	if m.hw.disk != nil {
		err = errors.Join(err, m.hw.disk.Close())
		m.hw.disk = nil
	}
	if err = errors.Join(err, m.built.remove()); err != nil {
		return m.failed("closing", err)
	}
	return nil
}

// Run boots the kernel of a release over the host's file tree, runs one command and
// switches the machine off. A status that is not 0 is not an error.
func Run(ctx context.Context, cfg Config, program string, args ...string) (Result, error) {
	m, err := Start(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	r, err := m.Command(ctx, Command{Args: append([]string{program}, args...)})
	if err == nil {
		err = m.Shutdown(ctx)
	}
	return r, errors.Join(err, m.Close())
}
