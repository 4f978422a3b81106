package cgroupbpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrRights says that the kernel does not let this process load or attach programs.
var ErrRights = errors.New("the kernel refuses BPF programs from this process; to fix: give it CAP_BPF and CAP_NET_ADMIN")

// ErrKernel says that the kernel has no BPF programs for cgroups.
var ErrKernel = errors.New("this kernel has no BPF programs for cgroups; to fix: use one with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF")

// The parts of union bpf_attr (linux/bpf.h) that the commands below read. The kernel takes what is missing for zeros.
type (
	mapAttr struct {
		kind, keySize, valueSize, maxEntries, flags, _, _ uint32
		name                                              [16]byte
		_, btf, btfKey, btfValue                          uint32
	}
	elementAttr struct {
		fd, _         uint32
		key, value, _ uint64
	}
	loadAttr struct {
		kind, count       uint32
		code, license     uint64
		logLevel, logSize uint32
		log               uint64
		_, _              uint32
		name              [16]byte
		_, attach         uint32
	}
	attachAttr struct{ target, program, attach, flags uint32 }
	linkAttr   struct{ program, target, attach uint32 }
	btfAttr    struct {
		data, _    uint64
		size, _, _ uint32
	}
	infoAttr struct {
		fd, size uint32
		info     uint64
	}
)

// bpf does one command. Addresses in attr must be pinned.
func bpf[T any](command uintptr, attr *T) (int, error) {
	for {
		//nolint:gosec // The kernel is told where attr is, and how long.
		fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR:
		case unix.EAGAIN: // A signal came while the kernel verified a program.
		default:
			return -1, errno
		}
	}
}

// pinned returns the address of a slice for the kernel, and pins it.
func pinned(p *runtime.Pinner, b []byte) uint64 {
	start := unsafe.SliceData(b) //nolint:gosec // It may be empty: then the kernel is told so.
	p.Pin(start)
	return uint64(uintptr(unsafe.Pointer(start))) //nolint:gosec // For the kernel, which is told its length.
}

// meaning translates errors that a user can do something about.
func meaning(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w (%w)", ErrRights, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w (%w)", ErrKernel, err)
	}
	return err
}

func named(name string) (out [16]byte) {
	copy(out[:len(out)-1], name)
	return out
}

// newMap makes a map and returns its descriptor.
func newMap(a mapAttr, name string) (int, error) {
	a.name = named(name)
	fd, err := bpf(unix.BPF_MAP_CREATE, &a)
	if err != nil {
		return -1, fmt.Errorf("making the map %s: %w", name, meaning(err))
	}
	return fd, nil
}

// newNotes makes the map of the sockets' storages. Each lasts as long as its socket, and counts as memory of the
// socket (net.core.optmem_max).
func newNotes() (int, error) {
	types, err := noteTypes()
	if err != nil {
		return -1, err
	}
	fd, err := newMap(mapAttr{
		kind: unix.BPF_MAP_TYPE_SK_STORAGE, keySize: wordSize, valueSize: noteSize, flags: unix.BPF_F_NO_PREALLOC,
		btf: uint32(types), btfKey: 1, btfValue: 2, //nolint:gosec // Descriptors are small.
	}, "mh_dns_notes")
	return fd, errors.Join(err, unix.Close(types))
}

// noteTypes describes a note to the kernel, which wants that for sockets' storage (Documentation/bpf/btf.rst): type 1 is a
// word, type 2 is an array of them.
func noteTypes() (int, error) {
	const (
		magic, version = 0xeb9f, 1
		headerSize     = 24
		kindInt        = 1 << 24
		kindArray      = 3 << 24
	)
	var types []byte
	for _, n := range []uint32{
		1 /* its name */, kindInt, wordSize, 8 * wordSize,
		0, kindArray, 0, 1 /* of words */, 1 /* by words */, maxNoteWords,
	} {
		types = binary.NativeEndian.AppendUint32(types, n)
	}
	names := []byte("\x00word\x00")
	data := binary.NativeEndian.AppendUint16(nil, magic)
	data = append(data, version, 0)
	for _, n := range []int{headerSize, 0, len(types), len(types), len(names)} {
		data = binary.NativeEndian.AppendUint32(data, uint32(n)) //nolint:gosec // Lengths of a few bytes.
	}
	data = append(append(data, types...), names...)
	var p runtime.Pinner
	defer p.Unpin()
	fd, err := bpf(unix.BPF_BTF_LOAD, &btfAttr{data: pinned(&p, data), size: uint32(len(data))}) //nolint:gosec // Short.
	if err != nil {
		return -1, fmt.Errorf("describing the notes of sockets to the kernel: %w", meaning(err))
	}
	return fd, nil
}

// license is what the kernel is told. The programs call nothing that is for GPL programs alone.
const license = "Apache-2.0"

// logSize is room for what the verifier says about a program that it refuses.
const logSize = 64 << 10

// load has the kernel verify and compile a program.
func load(prog program) (int, error) {
	fd, err := loadCode(prog, prog.code)
	if prog.old != nil && errors.Is(err, ErrKernel) {
		return loadCode(prog, prog.old)
	}
	return fd, err
}

func loadCode(prog program, instructions []instruction) (int, error) {
	code, err := assemble(instructions)
	if err != nil {
		return -1, fmt.Errorf("loading %s: %w", prog.name, err)
	}
	var p runtime.Pinner
	defer p.Unpin()
	a := loadAttr{
		kind: prog.kind, count: uint32(len(code) / slotSize), code: pinned(&p, code), //nolint:gosec // Short.
		license: pinned(&p, append([]byte(license), 0)), name: named(prog.name), attach: prog.attach,
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, &a)
	if err == nil {
		return fd, nil
	}
	said := ""
	if !errors.Is(err, unix.EPERM) {
		// Once more, to hear why.
		log := make([]byte, logSize)
		a.log, a.logSize, a.logLevel = pinned(&p, log), logSize, 1
		if fd, err := bpf(unix.BPF_PROG_LOAD, &a); err == nil {
			return fd, nil
		}
		said = lastLines(log)
	}
	return -1, fmt.Errorf("loading %s: %w%s", prog.name, meaning(err), said)
}

// lastLines are the last words of the verifier, which name the cause.
func lastLines(log []byte) string {
	text, _, _ := bytes.Cut(log, []byte{0})
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 4 {
		lines = lines[len(lines)-4:]
	}
	if lines[0] == "" {
		return ""
	}
	return "; the verifier says: " + strings.Join(lines, " | ")
}

// attach adds a program to those of a cgroup. Those of others stay (BPF_F_ALLOW_MULTI).
func attach(cgroup, prog int, where uint32) error {
	a := attachAttr{target: uint32(cgroup), program: uint32(prog), attach: where, flags: unix.BPF_F_ALLOW_MULTI} //nolint:gosec // Descriptors are small.
	_, err := bpf(unix.BPF_PROG_ATTACH, &a)
	return err
}

func detach(cgroup, prog int, where uint32) error {
	a := attachAttr{target: uint32(cgroup), program: uint32(prog), attach: where} //nolint:gosec // Descriptors are small.
	_, err := bpf(unix.BPF_PROG_DETACH, &a)
	return err
}

// Attach binds the sockets that processes of a cgroup make from now on. Without a map, DNS queries go where they are
// sent. It attaches all programs or none; what was attached before stays. The cgroup is a directory of a cgroup2 file system.
//
// Errors: [ErrRights], [ErrKernel]; EPERM also where a cgroup above has a program that forbids others; E2BIG where there are 64
// programs (BPF_CGROUP_MAX_PROGS); ENOENT where the cgroup has been removed.
func Attach(cgroup *os.File, m Mark, dns *DNSMap) error {
	if err := m.check(); err != nil {
		return err
	}
	raw, err := cgroup.SyscallConn()
	if err != nil {
		return fmt.Errorf("attaching to a cgroup: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = attachAll(int(fd), m, dns) })
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("binding a cgroup to a link: %w", err)
	}
	return nil
}

// A loaded program.
type loaded struct {
	program
	fd int
}

func attachAll(cgroup int, m Mark, dns *DNSMap) error {
	return withPrograms(markProgram(m), m, dns, func(all []loaded) error {
		for n, l := range all {
			err := attach(cgroup, l.fd, l.attach)
			if err == nil {
				continue
			}
			err = fmt.Errorf("attaching %s: %w", l.name, err)
			for _, done := range all[:n] {
				err = errors.Join(err, detach(cgroup, done.fd, done.attach))
			}
			return err
		}
		return nil
	})
}

// withPrograms loads a program that sets the mark, and those of DNS if there is a map, and calls f with them.
func withPrograms(mark program, m Mark, dns *DNSMap, f func([]loaded) error) (err error) {
	var programs []program
	if dns != nil {
		notes, err := newNotes()
		if err != nil {
			return err
		}
		// The programs keep it.
		defer func() { err = errors.Join(err, unix.Close(notes)) }()
		programs = dnsPrograms(m, int(dns.file.Fd()), notes)
	}
	// The last one, because the others do nothing before sockets have the mark.
	programs = append(programs, mark)
	var all []loaded
	defer func() {
		for _, l := range all {
			err = errors.Join(err, unix.Close(l.fd))
		}
	}()
	for _, p := range programs {
		fd, err := load(p)
		if err != nil {
			return err
		}
		all = append(all, loaded{p, fd})
	}
	return f(all)
}
