/// Linear maps over a frozen, quantized matrix with low-rank branches beside it: forward and backward.
///
/// For a group of maps that read the same x `[M, I]`, each with W `[O, I]` and branches (s, A, R, B):
///
///     y  = x W^T + b + sum of s h B^T        u = x A^T, h = u R^T
///     dx = dy W + sum of du A                dh = s dy B, du = dh R
///     dB = s dy^T h    dR = dh^T u    dA = du^T x
///
/// W is decoded a tile at a time; tiles are cut by shape only, and every sum has one order.

import CKernels
import LinearAlgebra
import Quantization

enum LinearMaps {
    /// Tokens that share a decoded tile: decoding it then costs about 3 % of multiplying with it.
    static let tokensPerTask = 256
    /// Rows of W decoded at once in the forward direction, columns in the backward one.
    static let slab = 192
    /// Rows of W decoded at once in the backward direction: a slab of columns of them stays in the second-level cache.
    static let rowsPerStep = 512

    private struct Tile {
        let map: Int
        let rows: Range<Int>
        let tokens: Range<Int>
    }

    /// Calls `body` for each range of at most `size` in 0..<count.
    @inline(__always) private static func cut(_ count: Int, _ size: Int, _ body: (Range<Int>) -> Void) {
        var start = 0
        while start < count {
            body(start..<min(count, start + size))
            start += size
        }
    }

    /// y of each map of the group.
    ///
    /// - Parameters:
    ///   - x: `[tokens, inputs]`
    ///   - residual: `[tokens, outputs]`, added to y; nil for none
    ///   - projections: the layer's record of u and h, `[width][tokens]`-blocked; see `Branch.offset`
    ///   - outputs: y of each map, `[tokens, outputs]`
    static func forward(
        _ group: [AdaptedMap], tokens: Int, x: UnsafePointer<Float>, residual: UnsafePointer<Float>? = nil,
        projections: UnsafeMutablePointer<Float>, into outputs: [UnsafeMutablePointer<Float>]
    ) {
        guard tokens >= FewTokens.limit else {
            FewTokenMaps.forward(group, tokens: tokens, x: x, residual: residual, projections: projections, into: outputs)
            return
        }
        let inputs = group[0].inputs
        let branches = group.flatMap(\.branches)
        let chunks = (tokens + tokensPerTask - 1) / tokensPerTask
        Parallel.forEach(count: branches.count * chunks) { task in
            let branch = branches[task / chunks]
            let range = Parallel.range(task % chunks, of: tokens, size: tokensPerTask)
            let r = branch.rank
            let u = projections + branch.offset * tokens + range.lowerBound * r
            gemm(
                transposeB: true, m: range.count, n: r, k: inputs, x + range.lowerBound * inputs, lda: inputs, branch.a,
                ldb: inputs, u, ldc: r)
            if let core = branch.core {
                gemm(transposeB: true, m: range.count, n: r, k: r, u, lda: r, core, ldb: r, u + tokens * r, ldc: r)
            }
        }
        var tiles: [Tile] = []
        for (index, map) in group.enumerated() {
            cut(tokens, tokensPerTask) { tokens in
                cut(map.outputs, slab) { tiles.append(Tile(map: index, rows: $0, tokens: tokens)) }
            }
        }
        let path = KernelPath.active.rawValue
        Parallel.forEach(count: tiles.count) { task in
            let tile = tiles[task]
            let map = group[tile.map]
            let (m, n, width) = (tile.tokens.count, tile.rows.count, map.outputs)
            let y = outputs[tile.map] + tile.tokens.lowerBound * width + tile.rows.lowerBound
            let source = x + tile.tokens.lowerBound * inputs
            map.weight.withTile(rows: tile.rows, columns: 0..<inputs) { weights, lead in
                if let residual {
                    for row in 0..<m {
                        (y + row * width).update(
                            from: residual + (tile.tokens.lowerBound + row) * width + tile.rows.lowerBound, count: n)
                    }
                }
                gemm(
                    transposeB: true, m: m, n: n, k: inputs, source, lda: inputs, weights, ldb: lead,
                    beta: residual == nil ? 0 : 1, y, ldc: width)
            }
            for branch in map.branches {
                let r = branch.rank
                let h = projections + branch.offset * tokens + (branch.core == nil ? 0 : tokens * r) + tile.tokens.lowerBound * r
                gemm(
                    transposeB: true, m: m, n: n, k: r, alpha: branch.scale, h, lda: r, branch.b + tile.rows.lowerBound * r,
                    ldb: r,
                    beta: 1, y, ldc: width)
            }
            if let bias = map.bias {
                bias.withUnsafeBufferPointer { bias in
                    for row in 0..<m { tributary_add(path, y + row * width, bias.baseAddress! + tile.rows.lowerBound, n) }
                }
            }
        }
    }

    /// Gradients of a group from those of its outputs.
    ///
    /// - Parameters:
    ///   - halves: if not nil, all but `dense` is computed in bfloat16, from x in `halves.inputs`
    ///   - x, projections: as in the forward direction, u and h filled
    ///   - dy: gradients of each map's output, `[tokens, outputs]`
    ///   - projectionGradients: room for du and dh, laid out as `projections`
    ///   - dx: overwritten with the gradient of x, `[tokens, inputs]`; nil if nothing below needs it
    ///   - gradient: where the gradients of the trained tensors go; nil for none
    ///   - dense: dW `[outputs, inputs]` of some of the maps, by index in the group, added to
    static func backward(
        in halves: HalfWorkspace? = nil,
        _ group: [AdaptedMap], tokens: Int, x: UnsafePointer<Float>, projections: UnsafePointer<Float>,
        dy: [UnsafePointer<Float>], projectionGradients: UnsafeMutablePointer<Float>, dx: UnsafeMutablePointer<Float>?,
        gradient: GradientTarget?, dense: [(map: Int, values: UnsafeMutablePointer<Float>)] = []
    ) {
        let inputs = group[0].inputs
        if let halves {
            HalfMaps.inputGradient(
                group, tokens: tokens, dy: dy, projectionGradients: projectionGradients, dx: dx, workspace: halves)
            if let gradient {
                for (part, range) in gradient.parts.enumerated() {
                    HalfMaps.adapterGradient(
                        group, tokens: tokens, range: range, projections: projections, projectionGradients: projectionGradients,
                        gradient: gradient.gradient(part), adds: gradient.isAdded, workspace: halves)
                }
            }
        }
        let gradient = halves == nil ? gradient : nil
        let branches = group.enumerated().flatMap { index, map in map.branches.map { (map: index, branch: $0) } }
        let chunks = (tokens + tokensPerTask - 1) / tokensPerTask
        // dh first, then du where there is an R: du stands where u stands, dh where h stands.
        Parallel.forEach(count: halves == nil ? branches.count * chunks : 0) { task in
            let (map, branch) = branches[task / chunks]
            let range = Parallel.range(task % chunks, of: tokens, size: tokensPerTask)
            let (r, width) = (branch.rank, group[map].outputs)
            let du = projectionGradients + branch.offset * tokens + range.lowerBound * r
            let dh = branch.core == nil ? du : du + tokens * r
            gemm(
                m: range.count, n: r, k: width, alpha: branch.scale, dy[map] + range.lowerBound * width, lda: width, branch.b,
                ldb: r, dh, ldc: r)
            if let core = branch.core { gemm(m: range.count, n: r, k: r, dh, lda: r, core, ldb: r, du, ldc: r) }
        }
        enum Work {
            case input(tokens: Range<Int>, columns: Range<Int>)
            case a(branch: Int, part: Int, columns: Range<Int>)
            case b(branch: Int, part: Int, rows: Range<Int>)
            case core(branch: Int, part: Int)
            case dense(index: Int, rows: Range<Int>)
        }
        var work: [Work] = []
        if dx != nil, halves == nil {
            cut(tokens, tokensPerTask) { tokens in cut(inputs, slab) { work.append(.input(tokens: tokens, columns: $0)) } }
        }
        for index in dense.indices {
            cut(group[dense[index].map].outputs, slab) { work.append(.dense(index: index, rows: $0)) }
        }
        for part in gradient?.parts.indices ?? 0..<0 {
            for (index, item) in branches.enumerated() {
                if item.branch.gradientA != nil {
                    cut(inputs, rowsPerStep) { work.append(.a(branch: index, part: part, columns: $0)) }
                }
                if item.branch.gradientB != nil {
                    cut(group[item.map].outputs, rowsPerStep) { work.append(.b(branch: index, part: part, rows: $0)) }
                }
                if item.branch.gradientCore != nil { work.append(.core(branch: index, part: part)) }
            }
        }
        Parallel.forEach(count: work.count) { task in
            switch work[task] {
            case .input(let range, let columns):
                let target = dx! + range.lowerBound * inputs + columns.lowerBound
                var isFirst = true
                for (index, map) in group.enumerated() {
                    cut(map.outputs, rowsPerStep) { rows in
                        map.weight.withTile(rows: rows, columns: columns) { weights, lead in
                            gemm(
                                m: range.count, n: columns.count, k: rows.count,
                                dy[index] + range.lowerBound * map.outputs + rows.lowerBound, lda: map.outputs, weights,
                                ldb: lead,
                                beta: isFirst ? 0 : 1, target, ldc: inputs)
                        }
                        isFirst = false
                    }
                    for branch in map.branches {
                        let r = branch.rank
                        let du = projectionGradients + branch.offset * tokens + range.lowerBound * r
                        gemm(
                            m: range.count, n: columns.count, k: r, du, lda: r, branch.a + columns.lowerBound, ldb: inputs,
                            beta: 1,
                            target, ldc: inputs)
                    }
                }
            case .a(let index, let part, let columns):
                let branch = branches[index].branch
                let (r, range) = (branch.rank, gradient!.parts[part])
                gemm(
                    transposeA: true, m: r, n: columns.count, k: range.count,
                    projectionGradients + branch.offset * tokens + range.lowerBound * r, lda: r,
                    x + range.lowerBound * inputs + columns.lowerBound, ldb: inputs, beta: gradient!.beta,
                    gradient!.gradient(part) + branch.gradientA! + columns.lowerBound, ldc: inputs)
            case .b(let index, let part, let rows):
                let (map, branch) = branches[index]
                let (r, width, range) = (branch.rank, group[map].outputs, gradient!.parts[part])
                let h = projections + branch.offset * tokens + (branch.core == nil ? 0 : tokens * r)
                gemm(
                    transposeA: true, m: rows.count, n: r, k: range.count, alpha: branch.scale,
                    dy[map] + range.lowerBound * width + rows.lowerBound, lda: width, h + range.lowerBound * r, ldb: r,
                    beta: gradient!.beta, gradient!.gradient(part) + branch.gradientB! + rows.lowerBound * r, ldc: r)
            case .core(let index, let part):
                let branch = branches[index].branch
                let (r, range) = (branch.rank, gradient!.parts[part])
                let dh = projectionGradients + branch.offset * tokens + tokens * r
                gemm(
                    transposeA: true, m: r, n: r, k: range.count, dh + range.lowerBound * r, lda: r,
                    projections + branch.offset * tokens + range.lowerBound * r, ldb: r, beta: gradient!.beta,
                    gradient!.gradient(part) + branch.gradientCore!, ldc: r)
            case .dense(let index, let rows):
                let width = group[dense[index].map].outputs
                gemm(
                    transposeA: true, m: rows.count, n: inputs, k: tokens, dy[dense[index].map] + rows.lowerBound, lda: width, x,
                    ldb: inputs, beta: 1, dense[index].values + rows.lowerBound * inputs, ldc: inputs)
            }
        }
    }
}
