package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder/wire"
)

// BindUsers binds the sockets of users. The programs are attached as long as the links are open, here or in another
// process. The old map is for [wire.OldMap], else nil; the made one comes with [wire.NewMap].
//
// Errors: as Bind.
func BindUsers(ctx context.Context, path string, u wire.Users, old *os.File) (links []*os.File, made *os.File, err error) {
	_, got, err := insist(ctx, path, wire.EncodeUsers(nil, u), old, wire.MaxLinks+1)
	if err != nil {
		return nil, nil, err
	}
	if u.Names == wire.NewMap && len(got) > 0 {
		made, got = got[len(got)-1], got[:len(got)-1]
	}
	if len(got) == 0 || len(got) > wire.MaxLinks {
		err = errors.New("asking multihomed-binder: its answer has not the descriptors that it must have; to fix: install one version of multihomed, and restart multihomed-binder.socket")
		if made != nil {
			err = errors.Join(err, made.Close())
		}
		return nil, nil, errors.Join(err, closeAll(got))
	}
	return got, made, nil
}

func closeAll(all []*os.File) (err error) {
	for _, f := range all {
		err = errors.Join(err, f.Close())
	}
	return err
}

// sizeofDescriptor is that of a C int.
const sizeofDescriptor = 4

// receive reads an answer with at most so many descriptors.
func receive(c *net.UnixConn, most int) (datagram []byte, got []*os.File, err error) {
	datagram = make([]byte, wire.MaxAnswer+1)
	var room []byte
	if most > 0 {
		room = make([]byte, unix.CmsgSpace(most*sizeofDescriptor))
	}
	n, controlled, flags, _, err := c.ReadMsgUnix(datagram, room)
	if err != nil {
		return nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(room[:controlled])
	if err != nil {
		return nil, nil, fmt.Errorf("reading the descriptors of an answer: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, got, fmt.Errorf("reading the descriptors of an answer: %w", err)
		}
		for _, fd := range fds {
			got = append(got, os.NewFile(uintptr(fd), "of multihomed-binder"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, got, errors.New("an answer with too many descriptors")
	}
	return datagram[:n], got, nil
}
