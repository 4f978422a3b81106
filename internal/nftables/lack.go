package nftables

import (
	"fmt"
	"slices"
)

// A lack is a part of nf_tables that the kernel does not have. It is ErrUnsupported.
type lack struct {
	part, module string
	err          error
}

func (l *lack) Error() string {
	return fmt.Sprintf("the kernel lacks %s (module %s): %v", l.part, l.module, l.err)
}

func (l *lack) Is(target error) bool { return target == ErrUnsupported }

func (l *lack) Unwrap() error { return l.err }

// Lacks says what the kernel lacks, once each, in the words of "nf_tables' expression ct (module nft_ct)".
// It is empty if the error has other reasons.
func Lacks(err error) (all []string) {
	var walk func(error)
	walk = func(err error) {
		if l, ok := err.(*lack); ok { //nolint:errorlint // The tree of errors is walked.
			if words := fmt.Sprintf("%s (module %s)", l.part, l.module); !slices.Contains(all, words) {
				all = append(all, words)
			}
			return
		}
		switch e := err.(type) { //nolint:errorlint // as above
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				walk(inner)
			}
		case interface{ Unwrap() error }:
			walk(e.Unwrap())
		}
	}
	walk(err)
	return all
}
