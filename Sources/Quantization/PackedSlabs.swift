/// Slabs of a frozen matrix as the right operand of a bfloat16 product.

import CKernels
import Checkpoints
import LinearAlgebra

extension QuantizedMatrix {
    /// Packs columns `n` of the operand over `k`, rounded to bfloat16, into `tributary_bf16_packed_size` words.
    ///
    /// Not transposed (y = x W^T), n are rows of the matrix and k columns; transposed (dx = dy W), n are columns and k rows.
    /// A format that can is packed as it lies; every other is decoded to floats first, a slab at a time.
    public func pack(
        columns n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath = .active
    ) {
        let (rows, part) = transposed ? (k, n) : (n, k)
        precondition(rows.lowerBound >= 0 && rows.upperBound <= self.rows && part.lowerBound >= 0 && part.upperBound <= columns)
        if weights.pack(columns: columns, n: n, over: k, transposed: transposed, into: target, path: path) { return }
        let tile = Scratch.weights.floats(rows.count * part.count)
        decode(rows: rows, columns: part, into: tile, stride: part.count, path: path)
        packFloats(
            tile, stride: part.count, transposed: transposed, columns: 0..<n.count, over: 0..<k.count, into: target, path: path)
    }
}

extension QuantizedMatrix {
    /// C = A W^T (`[count, rows]`), or transposed C = A W (`[count, columns]`), over all threads.
    ///
    /// - Parameters:
    ///   - a: `count` rows of bfloat16
    ///   - c: overwritten, `lead` floats from row to row
    public func multiply(_ a: HalfRows, count: Int, transposed: Bool, into c: UnsafeMutablePointer<Float>, lead: Int) {
        let (n, k) = transposed ? (columns, rows) : (rows, columns)
        let slabs = (n + HalfProduct.slab - 1) / HalfProduct.slab
        let part = HalfProduct.rowsPerTask(slabs: slabs)
        let parts = (count + part - 1) / part
        Parallel.forEach(count: slabs * parts) { task in
            let range = Parallel.range(task % parts, of: count, size: part)
            let columns = Parallel.range(task / parts, of: n, size: HalfProduct.slab)
            var sum = HalfProduct(
                m: range.count, n: columns.count, into: c + range.lowerBound * lead + columns.lowerBound, lead: lead)
            sum.add(a.pointer + range.lowerBound * a.stride, lead: a.stride, k: k) { k, target in
                pack(columns: columns, over: k, transposed: transposed, into: target)
            }
            sum.flush()
        }
    }
}
