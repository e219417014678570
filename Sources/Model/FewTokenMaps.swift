/// Linear maps for a few tokens, forward: one token of a text that grows, above all. The formulas are those of `LinearMaps`.

import CKernels
import LinearAlgebra
import Quantization

enum FewTokenMaps {
    /// y of each map of the group; the parameters are those of `LinearMaps.forward`.
    static func forward(
        _ group: [AdaptedMap], tokens: Int, x: UnsafePointer<Float>, residual: UnsafePointer<Float>?,
        projections: UnsafeMutablePointer<Float>, into outputs: [UnsafeMutablePointer<Float>]
    ) {
        let inputs = group[0].inputs
        let path = KernelPath.active.rawValue
        let branches = group.flatMap(\.branches)
        Parallel.forEach(count: branches.count) { index in
            let branch = branches[index]
            let r = branch.rank
            let u = projections + branch.offset * tokens
            tributary_gemv_f32(path, branch.a, inputs, r, inputs, x, inputs, tokens, u, r)
            if let core = branch.core { tributary_gemv_f32(path, core, r, r, r, u, r, tokens, u + tokens * r, r) }
        }
        let few = FewTokens(x, count: tokens, columns: inputs, for: group.lazy.map(\.weight))
        let parts = group.map { ($0.outputs + $0.weight.rowsPerFewTask - 1) / $0.weight.rowsPerFewTask }
        Parallel.forEach(count: parts.reduce(0, +)) { task in
            var (index, number) = (0, task)
            while number >= parts[index] {
                number -= parts[index]
                index += 1
            }
            let map = group[index]
            let width = map.outputs
            let rows = Parallel.range(number, of: width, size: map.weight.rowsPerFewTask)
            let y = outputs[index] + rows.lowerBound
            map.weight.multiply(few, rows: rows, into: y, lead: width)
            if let residual {
                for token in 0..<tokens {
                    tributary_add(path, y + token * width, residual + token * width + rows.lowerBound, rows.count)
                }
            }
            for branch in map.branches {
                let r = branch.rank
                let h = projections + branch.offset * tokens + (branch.core == nil ? 0 : tokens * r)
                let scaled = Scratch.first.floats(tokens * r)
                for i in 0..<tokens * r { scaled[i] = branch.scale * h[i] }
                let sums = Scratch.second.floats(tokens * rows.count)
                tributary_gemv_f32(
                    path, branch.b + rows.lowerBound * r, r, rows.count, r, scaled, r, tokens, sums, rows.count)
                for token in 0..<tokens { tributary_add(path, y + token * width, sums + token * rows.count, rows.count) }
            }
            if let bias = map.bias {
                bias.withUnsafeBufferPointer { bias in
                    for token in 0..<tokens {
                        tributary_add(path, y + token * width, bias.baseAddress! + rows.lowerBound, rows.count)
                    }
                }
            }
        }
    }
}
