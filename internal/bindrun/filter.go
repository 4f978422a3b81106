package bindrun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNumber   = 0
	dataArch     = 4
	dataFirstArg = 16
)

// x32 is set in the numbers of a second set of system calls of amd64 (linux/x32.h); no other number is so high.
const x32 = 0x40000000

// An architecture is what the filter must know of the machine: its number for the kernel's audit (linux/audit.h), and
// the number of socketcall(2), 0 if it has none.
type architecture struct{ audit, socketcall uint32 }

func architectures() map[string]architecture {
	return map[string]architecture{
		"386": {unix.AUDIT_ARCH_I386, 102}, "amd64": {unix.AUDIT_ARCH_X86_64, 0},
		"arm": {unix.AUDIT_ARCH_ARM, 0}, "arm64": {unix.AUDIT_ARCH_AARCH64, 0},
		"ppc64le": {unix.AUDIT_ARCH_PPC64LE, 102}, "riscv64": {unix.AUDIT_ARCH_RISCV64, 0},
		"s390x": {unix.AUDIT_ARCH_S390X, 102},
	}
}

// errFilter says that the kernel or the machine has no such filters.
var errFilter = errors.New("this kernel cannot have another process open a program's sockets; to fix: use Linux 5.14 or later with CONFIG_SECCOMP_FILTER")

// filter is the program of seccomp(2): socket(2) of IPv4 and IPv6 asks the attendant. Whatever would open a
// socket without socket(2) does not exist: io_uring, which programs do without, and system calls of other
// architectures.
func filter() ([]unix.SockFilter, error) {
	arch, known := architectures()[runtime.GOARCH]
	if !known {
		return nil, errFilter
	}
	firstArg := uint32(dataFirstArg)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		firstArg += 4 // The lower half of 64 bits.
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
		none  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	socketcall := arch.socketcall
	if socketcall == 0 {
		socketcall = x32 // Which was sorted out before.
	}
	// The verdicts stand at 10, 11 and 12. A jump counts from the instruction behind it.
	return []unix.SockFilter{
		0: {Code: load, K: dataArch},
		1: {Code: equal, K: arch.audit, Jf: 9},
		2: {Code: load, K: dataNumber},
		3: {Code: least, K: x32, Jt: 7},
		4: {Code: equal, K: unix.SYS_IO_URING_SETUP, Jt: 6},
		5: {Code: equal, K: socketcall, Jt: 5},
		6: {Code: equal, K: unix.SYS_SOCKET, Jf: 3},
		7: {Code: load, K: firstArg},
		8: {Code: equal, K: unix.AF_INET, Jt: 3},
		9: {Code: equal, K: unix.AF_INET6, Jt: 2},

		10: {Code: ret, K: unix.SECCOMP_RET_ALLOW},
		11: {Code: ret, K: none},
		12: {Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
	}, nil
}

// The structures and requests of linux/seccomp.h.
type (
	notification struct {
		id         uint64
		pid, flags uint32
		number     int32
		arch       uint32
		pointer    uint64
		args       [6]uint64
	}
	response struct {
		id    uint64
		value int64
		err   int32
		flags uint32
	}
	addedFD struct {
		id                       uint64
		flags, source, to, about uint32
	}
)

// meaningOfFilter translates the errors of seccomp(2).
func meaningOfFilter(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return errors.New("this process runs already under a filter that has another process answer, such as that of another multihomectl run or a container; to fix: run it outside of that")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w (%w)", errFilter, err)
	}
	return err
}
