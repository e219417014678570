/// Operands of bfloat16 products: rows of the left one, packed slabs of the right one, and their sum.

import CKernels

/// Rows of bfloat16, the left operand of a product; memory that only ever grows.
public final class HalfRows {
    private let memory = FloatBuffer()
    /// Values from one row to the next.
    public private(set) var stride = 0

    public init() {}

    public var pointer: UnsafeMutablePointer<UInt16> {
        UnsafeMutableRawPointer(memory.pointer).assumingMemoryBound(to: UInt16.self)
    }

    /// Makes room for `[rows, columns]`; growing loses the content.
    public func reserve(rows: Int, columns: Int) {
        stride = Self.stride(columns)
        memory.reserve(max(1, (rows * stride + 1) / 2))
    }

    /// Makes room for `[rows, columns]` floats, `lead` from row to row, each row to be replaced by its own rounding.
    public func reserveFloats(rows: Int, columns: Int) -> (values: UnsafeMutablePointer<Float>, lead: Int) {
        stride = Self.stride(2 * columns)
        memory.reserve(max(1, rows * stride / 2))
        return (memory.pointer, stride / 2)
    }

    /// Rows start on lines of 64 bytes, and not at the same place of every page: a tile reads eight rows at once, and
    /// eight that fall on the same set of the first-level cache would fill it.
    private static func stride(_ columns: Int) -> Int {
        let whole = (columns + 31) / 32 * 32
        return whole % 512 == 0 ? whole + 32 : whole
    }

    /// Rows `rows` become bf16(scale x), from column `column` on.
    ///
    /// - Parameter x: of the first of the rows, `[rows.count, columns]`, `lead` floats from row to row
    public func round(
        _ x: UnsafePointer<Float>, lead: Int, rows: Range<Int>, columns: Int, at column: Int = 0, scale: Float = 1,
        path: KernelPath = .active
    ) {
        tributary_bf16_round(
            path.rawValue, x, lead, rows.count, columns, scale, pointer + rows.lowerBound * stride + column, stride)
    }
}

/// C = C0 + a sum of products A B, each of a part of k: packed slabs of B are gathered until they fill a part of the
/// second-level cache, then multiplied.
///
/// The order of the sum is that of the calls of `add`, and where it is cut depends on sizes only.
public struct HalfProduct {
    /// Columns of a slab of B: two slivers.
    public static let slab = 2 * Int(TRIBUTARY_BF16_SLIVER)
    /// Values of k that are packed at once: with a slab of columns 288 KiB.
    public static let depth = 1536
    /// Rows of A that share a packed slab in one task: packing then costs 2 to 4 % of multiplying with it. Fewer where there
    /// are few slabs, so that there are tasks for several threads; a function of the shape alone.
    public static func rowsPerTask(slabs: Int) -> Int { slabs >= 16 ? 1024 : 512 }
    /// Parts of k whose slabs may wait.
    private static let maximumSegments = 32

    private let path: Int32
    private let m: Int
    private let n: Int
    private let c: UnsafeMutablePointer<Float>
    private let lead: Int
    private var from: UnsafePointer<Float>?
    private var fromLead: Int
    private let packed: UnsafeMutablePointer<UInt32>
    private let segments: UnsafeMutablePointer<tributary_bf16_segment>
    private var count = 0
    private var used = 0
    private let capacity: Int

    /// - Parameters:
    ///   - m, n: rows and columns of C; n is at most `slab`
    ///   - from: what the sum starts from, `fromLead` floats from row to row; nil for zero
    ///   - c: overwritten, `lead` floats from row to row
    public init(
        m: Int, n: Int, from: UnsafePointer<Float>? = nil, fromLead: Int = 0, into c: UnsafeMutablePointer<Float>, lead: Int,
        path: KernelPath = .active
    ) {
        precondition(n <= Self.slab)
        self.path = path.rawValue
        self.m = m
        self.n = n
        self.c = c
        self.lead = lead
        self.from = from
        self.fromLead = fromLead
        capacity = tributary_bf16_packed_size(n, Self.depth)
        packed = UnsafeMutableRawPointer(Scratch.packed.floats(capacity)).assumingMemoryBound(to: UInt32.self)
        segments = Scratch.segments.memory(of: tributary_bf16_segment.self, count: Self.maximumSegments)
    }

    /// Adds A B over `k` values, at most `depth` at a time.
    ///
    /// - Parameters:
    ///   - a: bfloat16 `[m, k]`, `aLead` values from row to row, a zero behind an odd k
    ///   - pack: packs the part `range` of 0..<k of B to the given place
    @inline(__always) public mutating func add(
        _ a: UnsafePointer<UInt16>, lead aLead: Int, k: Int, _ pack: (Range<Int>, UnsafeMutablePointer<UInt32>) -> Void
    ) {
        // Equal parts, each of whole runs of 64, so that parts of 4-bit rows hold whole bytes and blocks.
        let parts = (k + Self.depth - 1) / Self.depth
        let part = parts <= 1 ? k : ((k + parts - 1) / parts + 63) / 64 * 64
        var start = 0
        while start < k {
            let range = start..<min(k, start + part)
            let size = tributary_bf16_packed_size(n, range.count)
            if used + size > capacity || count == Self.maximumSegments { flush() }
            let place = packed + used
            pack(range, place)
            segments[count] = tributary_bf16_segment(a: a + start, a_stride: aLead, b: place, pairs: (range.count + 1) / 2)
            count += 1
            used += size
            start = range.upperBound
        }
    }

    /// Writes what has been added to C; the sum may go on.
    public mutating func flush() {
        guard count > 0 else { return }
        tributary_bf16_multiply(path, segments, count, m, n, from, fromLead, c, lead)
        from = UnsafePointer(c)
        fromLead = lead
        count = 0
        used = 0
    }
}

extension HalfRows {
    /// Packs columns `n` of these rows over rows `k`: the right operand of a product that sums over rows.
    public func pack(columns n: Range<Int>, over k: Range<Int>, into target: UnsafeMutablePointer<UInt32>) {
        var matrix = tributary_halves_matrix(values: pointer, stride: stride)
        tributary_bf16_pack_bf16(
            KernelPath.active.rawValue, &matrix, 1, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
    }
}

/// Packs part of a float matrix, `stride` floats from row to row; see `tributary_bf16_pack_f32`.
public func packFloats(
    _ values: UnsafePointer<Float>, stride: Int, transposed: Bool, columns n: Range<Int>, over k: Range<Int>,
    into target: UnsafeMutablePointer<UInt32>, path: KernelPath = .active
) {
    var matrix = tributary_floats_matrix(values: values, stride: stride)
    tributary_bf16_pack_f32(
        path.rawValue, &matrix, transposed ? 1 : 0, n.lowerBound, n.upperBound, k.lowerBound, k.upperBound, target)
}
