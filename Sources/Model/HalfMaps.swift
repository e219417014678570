/// Linear maps with their operands rounded to bfloat16; the formulas are those of `LinearMaps`.
///
/// A branch is nothing but more k: y = [x, s h] [W, B]^T and dx = [dy, du] [W; A], so that it is summed with the base's
/// product while that is in registers. Sums, u, h, dh and du are float32.

import CKernels
import LinearAlgebra
import Quantization

/// What the bfloat16 products of one block after another read: rows of x, or of dy of each map, and of the branches.
final class HalfWorkspace {
    let inputs = HalfRows()
    let gradients: [HalfRows] = [HalfRows(), HalfRows(), HalfRows()]
    let branches = HalfRows()
    /// du^T and s h^T of the group's branches, `[rank, tokens]` each.
    let factors = HalfRows()
}

enum HalfMaps {
    /// Tokens whose rounding and whose u or dh are one task.
    private static let tokensPerSmallTask = 128

    /// Columns of each branch in `HalfWorkspace.branches`.
    private static func columns(_ branches: [Branch]) -> (starts: [Int], width: Int) {
        var width = 0
        let starts = branches.map { branch in
            defer { width += (branch.rank + 1) / 2 * 2 }
            return width
        }
        return (starts, width)
    }

    /// y of each map of the group; the parameters are those of `LinearMaps.forward`.
    ///
    /// - Parameter fill: writes x of some tokens, rounded, to their rows of `workspace.inputs`
    static func forward(
        _ group: [AdaptedMap], tokens: Int, residual: UnsafePointer<Float>? = nil,
        projections: UnsafeMutablePointer<Float>, into outputs: [UnsafeMutablePointer<Float>], workspace: HalfWorkspace,
        fill: (Range<Int>, HalfRows) -> Void
    ) {
        let inputs = group[0].inputs
        let branches = group.flatMap(\.branches)
        let (starts, width) = columns(branches)
        let (rows, small) = (workspace.inputs, workspace.branches)
        rows.reserve(rows: tokens, columns: inputs)
        small.reserve(rows: tokens, columns: max(1, width))
        Parallel.forEach(count: (tokens + tokensPerSmallTask - 1) / tokensPerSmallTask) { task in
            let range = Parallel.range(task, of: tokens, size: tokensPerSmallTask)
            let first = range.lowerBound
            fill(range, rows)
            for (branch, start) in zip(branches, starts) {
                let r = branch.rank
                let u = projections + branch.offset * tokens + first * r
                product(
                    rows.pointer + first * rows.stride, lead: rows.stride, m: range.count, n: r, k: inputs, into: u, lead: r
                ) { n, k, target in
                    packFloats(branch.a, stride: inputs, transposed: false, columns: n, over: k, into: target)
                }
                var h = u
                if let core = branch.core {
                    h = u + tokens * r
                    gemm(transposeB: true, m: range.count, n: r, k: r, u, lda: r, core, ldb: r, h, ldc: r)
                }
                small.round(h, lead: r, rows: range, columns: r, at: start, scale: branch.scale)
            }
        }
        let slab = HalfProduct.slab
        let slabs = group.map { ($0.outputs + slab - 1) / slab }
        let all = slabs.reduce(0, +)
        let part = HalfProduct.rowsPerTask(slabs: all)
        let parts = (tokens + part - 1) / part
        let path = KernelPath.active.rawValue
        Parallel.forEach(count: all * parts) { task in
            let range = Parallel.range(task % parts, of: tokens, size: part)
            var (index, number, firstBranch) = (0, task / parts, 0)
            while number >= slabs[index] {
                number -= slabs[index]
                firstBranch += group[index].branches.count
                index += 1
            }
            let map = group[index]
            let n = Parallel.range(number, of: map.outputs, size: slab)
            let offset = range.lowerBound * map.outputs + n.lowerBound
            let y = outputs[index] + offset
            var sum = HalfProduct(
                m: range.count, n: n.count, from: residual.map { $0 + offset }, fromLead: map.outputs, into: y, lead: map.outputs)
            sum.add(rows.pointer + range.lowerBound * rows.stride, lead: rows.stride, k: inputs) { k, target in
                map.weight.pack(columns: n, over: k, transposed: false, into: target)
            }
            for (number, branch) in map.branches.enumerated() {
                sum.add(
                    small.pointer + range.lowerBound * small.stride + starts[firstBranch + number], lead: small.stride,
                    k: branch.rank
                ) { k, target in
                    packFloats(branch.b, stride: branch.rank, transposed: false, columns: n, over: k, into: target)
                }
            }
            sum.flush()
            if let bias = map.bias {
                bias.withUnsafeBufferPointer { bias in
                    for row in 0..<range.count {
                        tributary_add(path, y + row * map.outputs, bias.baseAddress! + n.lowerBound, n.count)
                    }
                }
            }
        }
    }

    /// du and dh of every branch, and dx; the parameters are those of `LinearMaps.backward`.
    static func inputGradient(
        _ group: [AdaptedMap], tokens: Int, dy: [UnsafePointer<Float>], projectionGradients: UnsafeMutablePointer<Float>,
        dx: UnsafeMutablePointer<Float>?, workspace: HalfWorkspace
    ) {
        let inputs = group[0].inputs
        let (starts, width) = columns(group.flatMap(\.branches))
        let (gradients, small) = (workspace.gradients, workspace.branches)
        for (index, map) in group.enumerated() { gradients[index].reserve(rows: tokens, columns: map.outputs) }
        small.reserve(rows: tokens, columns: max(1, width))
        Parallel.forEach(count: (tokens + tokensPerSmallTask - 1) / tokensPerSmallTask) { task in
            let range = Parallel.range(task, of: tokens, size: tokensPerSmallTask)
            let first = range.lowerBound
            var number = 0
            for (index, map) in group.enumerated() {
                let (rows, outputs) = (gradients[index], map.outputs)
                rows.round(dy[index] + first * outputs, lead: outputs, rows: range, columns: outputs)
                for branch in map.branches {
                    let r = branch.rank
                    let du = projectionGradients + branch.offset * tokens + first * r
                    let dh = branch.core == nil ? du : du + tokens * r
                    product(
                        rows.pointer + first * rows.stride, lead: rows.stride, m: range.count, n: r, k: outputs, into: dh, lead: r
                    ) { n, k, target in
                        packFloats(branch.b, stride: r, transposed: true, columns: n, over: k, into: target)
                    }
                    if branch.scale != 1 { for i in 0..<range.count * r { dh[i] *= branch.scale } }
                    if let core = branch.core { gemm(m: range.count, n: r, k: r, dh, lda: r, core, ldb: r, du, ldc: r) }
                    small.round(du, lead: r, rows: range, columns: r, at: starts[number])
                    number += 1
                }
            }
        }
        guard let dx else { return }
        let slab = HalfProduct.slab
        let slabs = (inputs + slab - 1) / slab
        let part = HalfProduct.rowsPerTask(slabs: slabs)
        let parts = (tokens + part - 1) / part
        Parallel.forEach(count: slabs * parts) { task in
            let range = Parallel.range(task % parts, of: tokens, size: part)
            let n = Parallel.range(task / parts, of: inputs, size: slab)
            var sum = HalfProduct(
                m: range.count, n: n.count, into: dx + range.lowerBound * inputs + n.lowerBound, lead: inputs)
            var number = 0
            for (index, map) in group.enumerated() {
                let rows = gradients[index]
                sum.add(rows.pointer + range.lowerBound * rows.stride, lead: rows.stride, k: map.outputs) { k, target in
                    map.weight.pack(columns: n, over: k, transposed: true, into: target)
                }
                for branch in map.branches {
                    sum.add(
                        small.pointer + range.lowerBound * small.stride + starts[number], lead: small.stride, k: branch.rank
                    ) { k, target in
                        packFloats(branch.a, stride: inputs, transposed: true, columns: n, over: k, into: target)
                    }
                    number += 1
                }
            }
            sum.flush()
        }
    }

    /// Gradients of A and B of every branch from the tokens `range`: dA = du^T x and dB^T = (s h)^T dy, with x in
    /// `workspace.inputs` and dy in `workspace.gradients`; dR = dh^T u in float32.
    ///
    /// - Parameters:
    ///   - projections, projectionGradients: u and h, du and dh, as in `LinearMaps.backward`
    ///   - gradient: the flat gradient of the trained tensors
    ///   - adds: whether it is added to, else overwritten
    static func adapterGradient(
        _ group: [AdaptedMap], tokens: Int, range: Range<Int>, projections: UnsafePointer<Float>,
        projectionGradients: UnsafePointer<Float>, gradient: UnsafeMutablePointer<Float>, adds: Bool, workspace: HalfWorkspace
    ) {
        let inputs = group[0].inputs
        let branches = group.enumerated().flatMap { index, map in map.branches.map { (map: index, branch: $0) } }
        let path = KernelPath.active.rawValue
        // Rows of du^T of the branches whose A is trained, one after another: they share one packed x.
        let forA = branches.indices.filter { branches[$0].branch.gradientA != nil }
        let rowsOfA = forA.reduce(0) { $0 + branches[$1].branch.rank }
        var starts: [Int] = []
        var count = rowsOfA
        for item in branches {
            starts.append(count)
            count += item.branch.gradientB == nil ? 0 : item.branch.rank
        }
        let factors = workspace.factors
        factors.reserve(rows: max(1, count), columns: max(1, range.count))
        Parallel.forEach(count: branches.count) { index in
            let branch = branches[index].branch
            let r = branch.rank
            let first = branch.offset * tokens + range.lowerBound * r
            let second = first + (branch.core == nil ? 0 : tokens * r)
            if branch.gradientA != nil {
                let row = forA.prefix { $0 < index }.reduce(0) { $0 + branches[$1].branch.rank }
                tributary_bf16_round_transposed(
                    path, projectionGradients + first, r, range.count, r, 1, factors.pointer + row * factors.stride,
                    factors.stride)
            }
            if branch.gradientB != nil {
                tributary_bf16_round_transposed(
                    path, projections + second, r, range.count, r, branch.scale, factors.pointer + starts[index] * factors.stride,
                    factors.stride)
            }
            if let place = branch.gradientCore {
                gemm(
                    transposeA: true, m: r, n: r, k: range.count, projectionGradients + second, lda: r, projections + first,
                    ldb: r, beta: adds ? 1 : 0, gradient + place, ldc: r)
            }
        }
        let slab = HalfProduct.slab
        let inputSlabs = forA.isEmpty ? 0 : (inputs + slab - 1) / slab
        let outputSlabs = group.map { map in
            map.branches.contains { $0.gradientB != nil } ? (map.outputs + slab - 1) / slab : 0
        }
        /// The product of some rows of `factors` with columns `n` of x or dy, `[m, n]`, in this thread's memory.
        func product(_ m: Int, from row: Int, _ rows: HalfRows, _ n: Range<Int>) -> UnsafeMutablePointer<Float> {
            let values = Scratch.first.floats(m * n.count)
            if range.isEmpty { values.update(repeating: 0, count: m * n.count) }
            var sum = HalfProduct(m: m, n: n.count, into: values, lead: n.count)
            sum.add(factors.pointer + row * factors.stride, lead: factors.stride, k: range.count) { k, target in
                rows.pack(
                    columns: n, over: range.lowerBound + k.lowerBound..<range.lowerBound + k.upperBound, into: target)
            }
            sum.flush()
            return values
        }
        Parallel.forEach(count: inputSlabs + outputSlabs.reduce(0, +)) { task in
            if task < inputSlabs {
                let n = Parallel.range(task, of: inputs, size: slab)
                var values = product(rowsOfA, from: 0, workspace.inputs, n)
                for index in forA {
                    for row in 0..<branches[index].branch.rank {
                        let target = gradient + branches[index].branch.gradientA! + row * inputs + n.lowerBound
                        if adds {
                            tributary_add(path, target, values, n.count)
                        } else {
                            target.update(from: values, count: n.count)
                        }
                        values += n.count
                    }
                }
                return
            }
            var (map, number) = (0, task - inputSlabs)
            while number >= outputSlabs[map] {
                number -= outputSlabs[map]
                map += 1
            }
            let n = Parallel.range(number, of: group[map].outputs, size: slab)
            for (index, item) in branches.enumerated() where item.map == map {
                guard let place = item.branch.gradientB else { continue }
                let r = item.branch.rank
                let values = product(r, from: starts[index], workspace.gradients[map], n)
                let target = gradient + place + n.lowerBound * r
                for row in 0..<n.count {
                    for column in 0..<r {
                        let value = values[column * n.count + row]
                        target[row * r + column] = adds ? target[row * r + column] + value : value
                    }
                }
            }
        }
    }

    /// C `[m, n]` = A B for a B of any number of columns.
    @inline(__always) private static func product(
        _ a: UnsafePointer<UInt16>, lead aLead: Int, m: Int, n: Int, k: Int, into c: UnsafeMutablePointer<Float>, lead: Int,
        _ pack: (_ n: Range<Int>, _ k: Range<Int>, UnsafeMutablePointer<UInt32>) -> Void
    ) {
        var start = 0
        while start < n {
            let columns = start..<min(n, start + HalfProduct.slab)
            var sum = HalfProduct(m: m, n: columns.count, into: c + start, lead: lead)
            sum.add(a, lead: aLead, k: k) { k, target in pack(columns, k, target) }
            sum.flush()
            start = columns.upperBound
        }
    }
}
