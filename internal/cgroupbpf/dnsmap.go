package cgroupbpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A DNSMap tells attached programs where DNS queries go. A process that has it may change it without any right
// (since Linux 5.19, or where kernel.unprivileged_bpf_disabled is 0), and all programs that were attached with it
// follow. The daemon keeps one for each link, and because its sandbox forbids bpf(2), multihomed-binder changes it.
type DNSMap struct{ file *os.File }

// NewDNSMap makes a map. It needs CAP_BPF.
func NewDNSMap(d DNS) (*DNSMap, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	fd, err := newMap(dnsMapAttr(), "mh_dns")
	if err != nil {
		return nil, err
	}
	m := &DNSMap{file: os.NewFile(uintptr(fd), "DNS map")}
	if err := m.Set(d); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func dnsMapAttr() mapAttr {
	return mapAttr{kind: unix.BPF_MAP_TYPE_ARRAY, keySize: wordSize, valueSize: mapSize, maxEntries: 1}
}

// OpenDNSMap takes over a map that another process made. It refuses every other descriptor, and a map of another
// version of this package.
func OpenDNSMap(file *os.File) (*DNSMap, error) {
	// The start of struct bpf_map_info.
	var info struct{ kind, id, keySize, valueSize, maxEntries, flags uint32 }
	var p runtime.Pinner
	defer p.Unpin()
	p.Pin(&info)
	_, err := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, &infoAttr{
		fd: uint32(file.Fd()), size: uint32(unsafe.Sizeof(info)), //nolint:gosec // Small.
		info: uint64(uintptr(unsafe.Pointer(&info))), //nolint:gosec // For the kernel, which is told its length.
	})
	if err != nil {
		return nil, fmt.Errorf("taking over a DNS map: %w", err)
	}
	want := dnsMapAttr()
	if info.kind != want.kind || info.keySize != want.keySize || info.valueSize != want.valueSize || info.maxEntries != want.maxEntries {
		return nil, errors.New("taking over a DNS map: it is none, or that of another version")
	}
	return &DNSMap{file: file}, nil
}

// Set changes where queries go from now on. A query at this moment may see a part of each, and be lost.
func (m *DNSMap) Set(d DNS) error {
	if err := d.check(); err != nil {
		return err
	}
	value := d.encode()
	var p runtime.Pinner
	defer p.Unpin()
	a := elementAttr{fd: uint32(m.file.Fd()), key: pinned(&p, make([]byte, wordSize)), value: pinned(&p, value[:])} //nolint:gosec // Descriptors are small.
	if _, err := bpf(unix.BPF_MAP_UPDATE_ELEM, &a); err != nil {
		return fmt.Errorf("changing a DNS map: %w", meaning(err))
	}
	return nil
}

// File is the map for another process. It remains the map's.
func (m *DNSMap) File() *os.File { return m.file }

// Close gives up the map. Programs that were attached with it go on.
func (m *DNSMap) Close() error {
	if err := m.file.Close(); err != nil {
		return fmt.Errorf("closing a DNS map: %w", err)
	}
	return nil
}
