// Segments image files by the C functions of Denseport's runtime and prints the share of each class that occurs.
//
//	shares BUNDLE IMAGE...
//
// Where the library was installed with --prefix DIR:
//
//	export CGO_CFLAGS=-IDIR/include CGO_LDFLAGS="-LDIR/lib -Wl,-rpath,DIR/lib -Wl,--allow-shlib-undefined"
//	go build shares.go && ./shares BUNDLE street.jpg
package main

// #cgo LDFLAGS: -ldenseport
// #include <denseport/denseport.h>
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"
)

// Segmenter is a bundle, ready to segment images; Close frees it.
type Segmenter struct{ handle *C.denseport_segmenter }

// call runs a function of the library on one thread: what it says of an error is kept for each thread.
func call(function func() C.int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if function() != 0 {
		return errors.New(C.GoString(C.denseport_error()))
	}
	return nil
}

// Open verifies and opens a bundle.
func Open(bundle string) (*Segmenter, error) {
	name := C.CString(bundle)
	defer C.free(unsafe.Pointer(name))
	found := &Segmenter{}
	return found, call(func() C.int { return C.denseport_open(name, nil, &found.handle) })
}

// Close frees the network.
func (segmenter *Segmenter) Close() { C.denseport_close(segmenter.handle) }

// Classes are the names, in the order of the mask's values.
func (segmenter *Segmenter) Classes() []string {
	names := make([]string, C.denseport_classes(segmenter.handle))
	for i := range names {
		names[i] = C.GoString(C.denseport_class_name(segmenter.handle, C.int(i)))
	}
	return names
}

// Segment gives the class of each pixel of an image file, row by row, and the image's width and height.
func (segmenter *Segmenter) Segment(file string) (mask []uint16, width, height int, err error) {
	name := C.CString(file)
	defer C.free(unsafe.Pointer(name))
	var found C.denseport_mask
	if err = call(func() C.int { return C.denseport_segment_file(segmenter.handle, name, &found) }); err != nil {
		return
	}
	defer C.denseport_free_mask(&found)
	width, height = int(found.width), int(found.height)
	mask = make([]uint16, width*height)
	if found.bytes == 2 { // more than 256 classes
		copy(mask, unsafe.Slice((*uint16)(found.pixels), len(mask)))
		return
	}
	for i, class := range unsafe.Slice((*uint8)(found.pixels), len(mask)) {
		mask[i] = uint16(class)
	}
	return
}

func shares(bundle string, files []string) error {
	segmenter, err := Open(bundle)
	if err != nil {
		return err
	}
	defer segmenter.Close()
	for _, file := range files {
		mask, width, height, err := segmenter.Segment(file)
		if err != nil {
			return err
		}
		classes := segmenter.Classes()
		pixels := make([]int, len(classes))
		for _, class := range mask {
			pixels[class]++
		}
		fmt.Printf("%s, %d x %d:", file, width, height)
		for i, count := range pixels {
			if count > 0 {
				fmt.Printf(" %s %.1f %%", classes[i], 100*float64(count)/float64(len(mask)))
			}
		}
		fmt.Println()
	}
	return nil
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: shares BUNDLE IMAGE...")
		os.Exit(2)
	}
	if err := shares(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(2)
	}
}
