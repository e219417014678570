/// Several stacks as one of bounded rank: the best approximation of their summed products (Eckart and Young 1936).
///
/// The product B A, `[outputs, inputs]`, is not formed. With thin factorizations B = Q_b R_b and A^T = Q_a R_a, the
/// singular values of B A are those of the small core R_b R_a^T, and its vectors are Q_b U and Q_a V (as in FLoRIST,
/// arXiv:2506.09199). All in double precision, rounded to single once. Where the bound is the matrix's smaller side, nothing is
/// cut off, and B A itself is one of the factors.

import Adapters
import Checkpoints
import LinearAlgebra
import Primitives

struct StackTruncation {
    let state: AdapterState
    /// Frobenius norm of what was cut off, over that of the whole, all maps together.
    let relativeError: Double

    /// - Parameter limits: the largest rank for each map, at most its smaller side
    init(stacks: [AdapterState], maps: [LinearMap], limits: [Int]) throws(AggregationError) {
        guard let whole = AdapterState.concatenated(stacks: stacks) else {
            preconditionFailure("stacks over different maps were checked before")
        }
        let ranks = maps.indices.map { min(whole.layout.tensors[2 * $0].rank, limits[$0]) }
        let layout = AdapterSpecification.stackLayout(maps: maps, ranks: ranks)
        var values: [Float] = []
        values.reserveCapacity(layout.parameterCount)
        var squaredWhole = 0.0
        var squaredCut = 0.0
        for (index, map) in maps.enumerated() {
            let product: TruncatedProduct
            do throws(Failure) {
                product = try TruncatedProduct(
                    b: whole.tensor(2 * index + 1).map(Double.init), a: whole.tensor(2 * index).map(Double.init),
                    map: map, rank: whole.layout.tensors[2 * index].rank, keeping: ranks[index])
            } catch {
                throw .decomposition(map: map.name, reason: error.message)
            }
            values += product.a.lazy.map { Float($0) }
            values += product.b.lazy.map { Float($0) }
            squaredWhole += product.squaredWhole
            squaredCut += product.squaredCut
        }
        if let position = values.firstIndex(where: { !$0.isFinite }) {
            throw Admission.notFinite(position, in: layout, client: "")
        }
        state = AdapterState(layout: layout, values: values)
        relativeError = squaredWhole > 0 ? (squaredCut / squaredWhole).squareRoot() : 0
    }
}

/// The leading part of one product B A.
private struct TruncatedProduct {
    /// `[kept, inputs]`, sqrt(S) V^T.
    let a: [Double]
    /// `[outputs, kept]`, U sqrt(S).
    let b: [Double]
    /// Sums of squared singular values: of all, and of those that are left out.
    let squaredWhole: Double
    let squaredCut: Double

    /// - Parameters:
    ///   - b: `[outputs, rank]`
    ///   - a: `[rank, inputs]`
    init(b: [Double], a: [Double], map: LinearMap, rank: Int, keeping kept: Int) throws(Failure) {
        // Nothing is cut off: the product itself beside an identity has as small a rank, and needs no decomposition.
        let side = min(map.outputs, map.inputs)
        guard kept < side else {
            let product = multiply(b, a, m: map.outputs, n: map.inputs, k: rank)
            let identity = (0..<side * side).map { $0 / side == $0 % side ? 1.0 : 0 }
            let isTall = map.outputs > map.inputs
            self.a = isTall ? identity : product
            self.b = isTall ? product : identity
            squaredWhole = product.reduce(0) { $0 + $1 * $1 }
            squaredCut = 0
            return
        }
        let left = try Thin(b, rows: map.outputs, columns: rank)
        let right = try Thin(transposed(a, rows: rank, columns: map.inputs), rows: map.inputs, columns: rank)
        let core = multiply(left.r, right.r, m: left.width, n: right.width, k: rank, transposeB: true)
        let (u, s, vt) = try svd(core, rows: left.width, columns: right.width)
        squaredWhole = s.reduce(0) { $0 + $1 * $1 }
        squaredCut = s.dropFirst(kept).reduce(0) { $0 + $1 * $1 }
        // U and V are [side, all]; only the leading `kept` are multiplied out.
        let all = s.count
        var outer = left.expand(leadingColumns(u, rows: left.width, columns: all, kept: kept), columns: kept)
        var inner = right.expand(
            transposed(Array(vt.prefix(kept * right.width)), rows: kept, columns: right.width), columns: kept)
        for column in 0..<kept {
            // Half of each singular value on either side, and the sign that makes the left vector's largest entry
            // positive: LAPACK's own sign depends on the processor.
            let scale = s[column].squareRoot()
            let sign = outer.signOfLargest(column: column, of: kept)
            for row in 0..<map.outputs { outer[row * kept + column] *= sign * scale }
            for row in 0..<map.inputs { inner[row * kept + column] *= sign * scale }
        }
        self.b = outer
        self.a = transposed(inner, rows: map.inputs, columns: kept)
    }
}

/// Q R of a tall matrix; of a wide one, whose rows need no basis, the identity and the matrix itself.
private struct Thin {
    /// `[rows, width]`, nil for the identity.
    let q: [Double]?
    /// `[width, columns]`.
    let r: [Double]
    let rows: Int
    let width: Int

    init(_ matrix: [Double], rows: Int, columns: Int) throws(Failure) {
        self.rows = rows
        if rows > columns {
            let factors = try qr(matrix, rows: rows, columns: columns)
            q = factors.q
            r = factors.r
            width = columns
        } else {
            q = nil
            r = matrix
            width = rows
        }
    }

    /// Q X for X `[width, columns]`.
    func expand(_ x: [Double], columns: Int) -> [Double] {
        q.map { multiply($0, x, m: rows, n: columns, k: width) } ?? x
    }
}

private func transposed(_ matrix: [Double], rows: Int, columns: Int) -> [Double] {
    var result = [Double](repeating: 0, count: matrix.count)
    for row in 0..<rows {
        for column in 0..<columns { result[column * rows + row] = matrix[row * columns + column] }
    }
    return result
}

private func leadingColumns(_ matrix: [Double], rows: Int, columns: Int, kept: Int) -> [Double] {
    var result: [Double] = []
    result.reserveCapacity(rows * kept)
    for row in 0..<rows { result += matrix[row * columns..<row * columns + kept] }
    return result
}

extension [Double] {
    /// 1 or -1: the sign of the entry of largest magnitude in a column of a row-major matrix, the first of equals.
    fileprivate func signOfLargest(column: Int, of columns: Int) -> Double {
        var largest = 0.0
        for index in stride(from: column, to: count, by: columns) where abs(self[index]) > abs(largest) {
            largest = self[index]
        }
        return largest < 0 ? -1 : 1
    }
}
