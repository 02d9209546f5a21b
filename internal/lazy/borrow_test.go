package lazy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// What others have is not fetched.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 400, size: 20 << 10, named: true, ragged: true, gap: 40})
	for name, has := range map[string]func(i int) bool{
		"all":    func(int) bool { return true },
		"none":   func(int) bool { return false },
		"odd":    func(i int) bool { return i%2 == 1 },
		"blocks": func(i int) bool { return i/100%2 == 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{rate: 10e6, rtt: ms(10)} // a gap of 100 KB is worth a request
			o := x.options(s)
			want := int64(0)
			for i := range 400 {
				if !has(i) {
					want += x.table.At(i).Len
				}
			}
			o.Elsewhere = func(_ context.Context, i int, dst []byte) bool {
				if has(i) {
					copy(dst, x.data[x.table.At(i).Off:])
				}
				return has(i)
			}
			if name == "all" {
				o.Source = func(context.Context) (Source, error) { return nil, errors.New("nobody was to ask") }
			}
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := create(t, dir, o)
				x.check(t, f, 1<<20, 100<<10)
				x.check(t, f, 5<<20, 1<<20)
				if err := f.Complete(context.Background(), nil); err != nil {
					t.Fatal(err)
				}
				x.check(t, f, 0, int64(len(x.data)))
				most := want + 256<<10 // what is present is passed over in a stream, if it is short
				if name != "odd" && s.given() > most || s.given() < want {
					t.Errorf("%d bytes fetched, others did not have %d", s.given(), want)
				}
			})
		})
	}
}
