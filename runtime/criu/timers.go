package criu

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
)

const filesImage = "files.img"

// WindTimers has the periodic timers go on that ran out while a container was frozen, or
// before, and that it has not read since. The kernel starts such a timer anew when it is
// read, and says until then that nothing is left of it; CRIU takes that for one that is
// stopped.
func WindTimers(ctx context.Context, images string) error {
	if err := windTimers(ctx, images); err != nil {
		return fmt.Errorf("wind the timers of a checkpoint: %w", err)
	}
	return nil
}

func windTimers(ctx context.Context, images string) error {
	d, err := openImages(ctx, images)
	if err != nil {
		return err
	}
	defer d.close()

	var all []*fdinfo.FileEntry
	wound := false
	err = read(d, filesImage, magicFiles, maxEntry, plainly(func(e *fdinfo.FileEntry) error {
		if t := e.GetTfd(); t.GetTicks() > 0 && t.GetVsec()+t.GetVnsec() == 0 && t.GetIsec()+t.GetInsec() > 0 {
			t.Vnsec, wound = to(uint64(1)), true // at once, as it is late
		}
		all = append(all, e)
		return nil
	}))
	if err != nil || !wound {
		return err
	}
	return replaceImage(filepath.Join(images, filesImage), magicFiles, all...)
}
