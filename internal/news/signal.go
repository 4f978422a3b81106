package news

// A Signal holds a value when there is something to do. It has one slot: giving it again
// before it was taken changes nothing, and never waits. NewSignal makes one.
type Signal chan struct{}

// NewSignal returns a Signal that was not given.
func NewSignal() Signal { return make(Signal, 1) }

// Give says that there is something to do.
func (s Signal) Give() {
	select {
	case s <- struct{}{}:
	default:
	}
}
