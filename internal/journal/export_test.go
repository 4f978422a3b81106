package journal

import "os"

// NativeTo is Native with another socket.
func NativeTo(socket string, otherwise Sink) Sink {
	return &nativeSink{socket: socket, otherwise: otherwise}
}

// SinkOfWithout is SinkOf on a host whose journal has no socket.
func SinkOfWithout(f *os.File) Sink { return sinkOf(f, false) }
