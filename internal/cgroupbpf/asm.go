package cgroupbpf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A register of the BPF machine. r0 is what a call or the program returns, r1 to r5 are arguments and lost by a
// call, r6 to r9 survive it, and r10 is the end of the stack.
type register uint8

const (
	r0 register = iota
	r1
	r2
	r3
	r4
	r5
	r6
	r7
	r8
	r9
	r10
)

// The operations that the programs need: class, source and code of linux/bpf_common.h and linux/bpf.h in one byte.
const (
	opLoadWord       = 0x61 // BPF_LDX | BPF_MEM | BPF_W
	opLoadDouble     = 0x79 // BPF_LDX | BPF_MEM | BPF_DW
	opStoreWord      = 0x63 // BPF_STX | BPF_MEM | BPF_W
	opLoadMap        = 0x18 // BPF_LD | BPF_IMM | BPF_DW, two slots
	opMove           = 0xbf // BPF_ALU64 | BPF_MOV | BPF_X
	opMove32         = 0xbc // BPF_ALU | BPF_MOV | BPF_X
	opMoveConstant   = 0xb4 // BPF_ALU | BPF_MOV | BPF_K
	opAddConstant    = 0x07 // BPF_ALU64 | BPF_ADD | BPF_K
	opAndConstant    = 0x54 // BPF_ALU | BPF_AND | BPF_K
	opOrConstant     = 0x44 // BPF_ALU | BPF_OR | BPF_K
	opOr             = 0x4c // BPF_ALU | BPF_OR | BPF_X
	opJump           = 0x05 // BPF_JMP | BPF_JA
	opJumpNull       = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	opJumpEqual      = 0x16 // BPF_JMP32 | BPF_JEQ | BPF_K
	opJumpUnequal    = 0x56 // BPF_JMP32 | BPF_JNE | BPF_K
	opJumpMore       = 0x26 // BPF_JMP32 | BPF_JGT | BPF_K
	opJumpDifference = 0x5e // BPF_JMP32 | BPF_JNE | BPF_X
	opJumpOther      = 0x5d // BPF_JMP | BPF_JNE | BPF_X
	opCall           = 0x85 // BPF_JMP | BPF_CALL
	opExit           = 0x95 // BPF_JMP | BPF_EXIT
)

// An instruction, or, if it has a name alone, the place that jumps to this name lead to.
type instruction struct {
	op       uint8
	dst, src register
	off      int16
	imm      uint32
	high     uint32 // of opLoadMap: the upper half
	to       string // of a jump
	name     string // of a place
}

func loadWord(dst, src register, off int16) instruction {
	return instruction{op: opLoadWord, dst: dst, src: src, off: off}
}

func loadDouble(dst, src register, off int16) instruction {
	return instruction{op: opLoadDouble, dst: dst, src: src, off: off}
}

func storeWord(dst register, off int16, src register) instruction {
	return instruction{op: opStoreWord, dst: dst, src: src, off: off}
}

// wide loads a constant of 64 bits.
func wide(dst register, value uint64) instruction {
	return instruction{op: opLoadMap, dst: dst, imm: uint32(value), high: uint32(value >> 32)} //nolint:gosec // Both halves.
}

// loadMap loads the map itself, as an argument of a call.
func loadMap(dst register, fd int) instruction { return loadPseudo(dst, pseudoMap, fd) }

// loadValue loads the address of the only value of an array.
func loadValue(dst register, fd int) instruction { return loadPseudo(dst, pseudoValue, fd) }

// What the source register of opLoadMap means (linux/bpf.h).
const pseudoMap, pseudoValue = 1, 2

func loadPseudo(dst, kind register, fd int) instruction {
	return instruction{op: opLoadMap, dst: dst, src: kind, imm: uint32(fd)} //nolint:gosec // Descriptors are small.
}

func move(dst, src register) instruction   { return instruction{op: opMove, dst: dst, src: src} }
func move32(dst, src register) instruction { return instruction{op: opMove32, dst: dst, src: src} }
func or(dst, src register) instruction     { return instruction{op: opOr, dst: dst, src: src} }

func constant(dst register, value uint32) instruction {
	return instruction{op: opMoveConstant, dst: dst, imm: value}
}

func add(dst register, value uint32) instruction {
	return instruction{op: opAddConstant, dst: dst, imm: value}
}

func and(dst register, value uint32) instruction {
	return instruction{op: opAndConstant, dst: dst, imm: value}
}

func orConstant(dst register, value uint32) instruction {
	return instruction{op: opOrConstant, dst: dst, imm: value}
}

func jump(to string) instruction { return instruction{op: opJump, to: to} }

// ifNull jumps if a whole register is 0; the others but ifOther compare 32 bits.
func ifNull(dst register, to string) instruction {
	return instruction{op: opJumpNull, dst: dst, to: to}
}

func ifEqual(dst register, value uint32, to string) instruction {
	return instruction{op: opJumpEqual, dst: dst, imm: value, to: to}
}

func ifUnequal(dst register, value uint32, to string) instruction {
	return instruction{op: opJumpUnequal, dst: dst, imm: value, to: to}
}

func ifMore(dst register, value uint32, to string) instruction {
	return instruction{op: opJumpMore, dst: dst, imm: value, to: to}
}

// ifOther jumps if whole registers differ.
func ifOther(dst, src register, to string) instruction {
	return instruction{op: opJumpOther, dst: dst, src: src, to: to}
}

func ifDifferent(dst, src register, to string) instruction {
	return instruction{op: opJumpDifference, dst: dst, src: src, to: to}
}

func call(helper uint32) instruction { return instruction{op: opCall, imm: helper} }
func exit() instruction              { return instruction{op: opExit} }
func place(name string) instruction  { return instruction{name: name} }
func (i instruction) isPlace() bool  { return i.name != "" }

// returns ends the program with a verdict.
func returns(v uint32) []instruction { return []instruction{constant(r0, v), exit()} }

// slots is how many places of the encoded program an instruction takes.
func (i instruction) slots() int {
	if i.op == opLoadMap {
		return 2
	}
	return 1
}

// slotSize is that of struct bpf_insn.
const slotSize = 8

// assemble encodes a program for this machine. It fails if a jump leads nowhere or too far, or a name stands for two places.
func assemble(program []instruction) ([]byte, error) {
	places := map[string]int{}
	at := 0
	for _, i := range program {
		if !i.isPlace() {
			at += i.slots()
			continue
		}
		if _, twice := places[i.name]; twice {
			return nil, fmt.Errorf("assembling: two places have the name %q", i.name)
		}
		places[i.name] = at
	}
	code := make([]byte, 0, at*slotSize)
	for _, i := range program {
		if i.isPlace() {
			continue
		}
		if i.to != "" {
			target, known := places[i.to]
			// Counted from the instruction behind the jump.
			distance := target - len(code)/slotSize - 1
			if !known || distance < 0 || distance > math.MaxInt16 {
				return nil, fmt.Errorf("assembling: a jump to %q, which is no place ahead", i.to)
			}
			i.off = int16(distance)
		}
		code = i.encode(code)
		if i.op == opLoadMap {
			code = append(code, make([]byte, slotSize/2)...)
			code = binary.NativeEndian.AppendUint32(code, i.high)
		}
	}
	return code, nil
}

func (i instruction) encode(code []byte) []byte {
	// Two fields of four bits, of which the first is the lower one where the lower byte comes first.
	registers := uint8(i.src)<<4 | uint8(i.dst)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		registers = uint8(i.dst)<<4 | uint8(i.src)
	}
	code = append(code, i.op, registers)
	code = binary.NativeEndian.AppendUint16(code, uint16(i.off)) //nolint:gosec // The same bits.
	return binary.NativeEndian.AppendUint32(code, i.imm)
}
