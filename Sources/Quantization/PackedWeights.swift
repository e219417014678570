/// The seam between a matrix and the format in which its weights are held: a tile is one call, never a value.

import LinearAlgebra

/// The weights of a row-major matrix, `[rows, columns]`, in one format; in memory or in a mapped file.
protocol PackedWeights: Sendable {
    /// The row's name in the table, `WeightFormat.all`.
    var formatName: String { get }
    /// Bytes in memory or in the file.
    var byteCount: Int { get }

    /// Writes the tile `rows` x `part` of the `columns` wide matrix as floats, `stride` floats from row to row; the ranges are
    /// not empty and lie in the matrix. The scalar path is the others' twin.
    func decode(
        columns: Int, rows: Range<Int>, _ part: Range<Int>, into target: UnsafeMutablePointer<Float>, stride: Int,
        path: KernelPath)

    /// Gives mapped pages back, where the weights lie in a file: they are read again when touched.
    func release()

    /// The values themselves, row-major, where they are held as floats.
    var floats: UnsafePointer<Float>? { get }

    /// Packs columns `n` over `k` of a bfloat16 product's right operand as `QuantizedMatrix.pack` says, without floats between;
    /// false where the format or this part of it cannot: nothing was written then.
    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool

    /// Whether `multiply` reads `FewTokens.ordered`.
    func readsOrderedTokens(columns: Int) -> Bool

    /// y = x W^T for some rows and a few tokens, with W widened in registers, as `QuantizedMatrix.multiply` says; false where
    /// the format cannot: nothing was written then.
    func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath
    ) -> Bool
}

extension PackedWeights {
    func release() {}

    var floats: UnsafePointer<Float>? { nil }

    func pack(
        columns: Int, n: Range<Int>, over k: Range<Int>, transposed: Bool, into target: UnsafeMutablePointer<UInt32>,
        path: KernelPath
    ) -> Bool { false }

    func readsOrderedTokens(columns: Int) -> Bool { false }

    func multiply(
        _ x: FewTokens, rows: Range<Int>, into y: UnsafeMutablePointer<Float>, lead: Int, path: KernelPath
    ) -> Bool { false }
}
