package cgroupbpf

// Dangling assembles a program whose jump leads to a place that does not exist, or that lies behind it.
func Dangling(behind bool) error {
	code := []instruction{jump("there"), exit()}
	if behind {
		code = []instruction{place("there"), jump("there"), exit()}
	}
	_, err := assemble(code)
	return err
}

// TwoPlaces assembles a program in which a name stands for two places.
func TwoPlaces() error {
	_, err := assemble([]instruction{jump("there"), place("there"), place("there"), exit()})
	return err
}

// MarkCode is the program that sets marks, as bytes.
func MarkCode(m Mark) ([]byte, error) { return assemble(markProgram(m).old) }

// LoadOld has the kernel verify the program for kernels without bpf_set_retval.
func LoadOld(m Mark) (fd int, err error) {
	p := markProgram(m)
	return loadCode(p, p.old)
}

// LoadWrong has the kernel refuse a program: it reads what was never written.
func LoadWrong() error {
	p := markProgram(Mark{Value: 1, Mask: 1})
	_, err := loadCode(p, []instruction{move(r0, r8), exit()})
	return err
}

// Encode is the content of a map.
func (d DNS) Encode() []byte {
	value := d.encode()
	return value[:]
}

// Check refuses what the programs cannot use.
func (d DNS) Check() error { return d.check() }
