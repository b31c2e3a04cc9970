//go:build !wasip1

package complete

import "baton/internal/native"

func init() {
	native.OnComplete = func(summary any, carry []byte) { told(summary.(Summary), carry) }
}
