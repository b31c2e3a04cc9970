//go:build !wasip1

package failure

import "baton/internal/native"

func init() {
	native.OnHandoffFailed = func(failure any, carry []byte) any { return ask(failure.(*Failure), carry) }
}
