/// Slabs of a frozen matrix as the right operand of a bfloat16 product.

import CKernels
import Checkpoints
import LinearAlgebra

extension QuantizedMatrix {
    /// Packs columns `n` of the operand over `k`, rounded to bfloat16, into `tributary_bf16_packed_size` words.
    ///
    /// Not transposed (y = x W^T), n are rows of the matrix and k columns; transposed (dx = dy W), n are columns and k rows.
    /// 4-bit codes and stored bf16 are packed as they lie; every other form is decoded to floats first, a slab at a time.
    public func pack(
        columns n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath = .active
    ) {
        let (rows, part) = transposed ? (k, n) : (n, k)
        precondition(rows.lowerBound >= 0 && rows.upperBound <= self.rows && part.lowerBound >= 0 && part.upperBound <= columns)
        switch form {
        case .dense(let values):
            values.withUnsafeBufferPointer {
                packFloats(
                    $0.baseAddress!, stride: columns, transposed: transposed, columns: n, over: k, into: target, path: path)
            }
            return
        // Where rows are no whole runs of 32 codes, a byte or a block may belong to two of them.
        case .fourBit(let codes, _)
        where columns % 32 == 0 && part.lowerBound % 32 == 0 && part.upperBound % 32 == 0:
            codes.withMatrix(columns: columns) { matrix in
                tributary_bf16_pack_4bit(
                    path.rawValue, matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
            }
            return
        case .stored(let source) where source.tensor.dtype == .bf16 && source.tensor.interleavedHeadSize == nil:
            var matrix = tributary_halves_matrix(values: source.tensor.bytes.baseAddress, stride: columns)
            tributary_bf16_pack_bf16(
                path.rawValue, &matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
            return
        default: break
        }
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
    ///   - c: overwritten
    public func multiply(_ a: HalfRows, count: Int, transposed: Bool, into c: UnsafeMutablePointer<Float>) {
        let (n, k) = transposed ? (columns, rows) : (rows, columns)
        let slabs = (n + HalfProduct.slab - 1) / HalfProduct.slab
        let part = HalfProduct.rowsPerTask(slabs: slabs)
        let parts = (count + part - 1) / part
        Parallel.forEach(count: slabs * parts) { task in
            let range = Parallel.range(task % parts, of: count, size: part)
            let columns = Parallel.range(task / parts, of: n, size: HalfProduct.slab)
            var sum = HalfProduct(
                m: range.count, n: columns.count, into: c + range.lowerBound * n + columns.lowerBound, lead: n)
            sum.add(a.pointer + range.lowerBound * a.stride, lead: a.stride, k: k) { k, target in
                pack(columns: columns, over: k, transposed: transposed, into: target)
            }
            sum.flush()
        }
    }
}

extension FourBitCodes {
    /// The codes and scales as the packing reads them; the pointers are valid inside `body`.
    fileprivate func withMatrix(columns: Int, _ body: (UnsafePointer<tributary_4bit_matrix>) -> Void) {
        packed.withBytes { bytes in
            table.withUnsafeBufferPointer { table in
                var matrix = tributary_4bit_matrix()
                matrix.packed = bytes
                matrix.table = table.baseAddress
                matrix.block_shift = Int32(blockSize.trailingZeroBitCount)
                matrix.columns = columns
                matrix.nested_block = 1
                switch scales {
                case .plain(let values):
                    values.withUnsafeBufferPointer {
                        matrix.scales = $0.baseAddress
                        body(&matrix)
                    }
                case .nested(let nested):
                    nested.codes.withUnsafeBufferPointer { codes in
                        nested.map.withUnsafeBufferPointer { map in
                            nested.scales.withUnsafeBufferPointer { scales in
                                matrix.codes = codes.baseAddress
                                matrix.map = map.baseAddress
                                matrix.scales = scales.baseAddress
                                matrix.offset = nested.offset
                                matrix.nested_block = nested.blockSize
                                body(&matrix)
                            }
                        }
                    }
                }
            }
        }
    }
}
