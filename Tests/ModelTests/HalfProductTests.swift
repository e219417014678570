/// Products of bfloat16 operands: against the scalar twin, against float32 of the same operands, and models that use them.

import Adapters
import CKernels
import Checkpoints
import LinearAlgebra
import Model
import Primitives
import Quantization
import TestSupport
import Testing

private func random(_ count: Int, _ purpose: String) -> [Float] {
    var generator = SeededGenerator(seed: 21, purpose: purpose)
    return (0..<count).map { _ in generator.symmetric(1) }
}

private func rounded(_ values: [Float]) -> [Double] {
    values.map { Double(Float(bitPattern: UInt32(bfloat16Bits($0)) << 16)) }
}

@Suite struct HalfProductTests {
    /// C = start + A B with B from the matrix, by slabs and parts as the model's products are cut.
    private func product(
        _ a: [Float], m: Int, _ matrix: QuantizedMatrix, transposed: Bool, start: [Float]?, path: KernelPath
    ) -> [Float] {
        let (n, k) = transposed ? (matrix.columns, matrix.rows) : (matrix.rows, matrix.columns)
        let hasStart = start != nil
        let rows = HalfRows()
        rows.reserve(rows: m, columns: k)
        var c = [Float](repeating: .nan, count: m * n)
        c.withUnsafeMutableBufferPointer { c in
            a.withUnsafeBufferPointer { rows.round($0.baseAddress!, lead: k, rows: 0..<m, columns: k, path: path) }
            for first in stride(from: 0, to: n, by: HalfProduct.slab) {
                let columns = first..<min(n, first + HalfProduct.slab)
                (start ?? []).withUnsafeBufferPointer { base in
                    var sum = HalfProduct(
                        m: m, n: columns.count, from: hasStart ? base.baseAddress.map { $0 + first } : nil, fromLead: n,
                        into: c.baseAddress! + first,
                        lead: n, path: path)
                    sum.add(rows.pointer, lead: rows.stride, k: k) { k, target in
                        matrix.pack(columns: columns, over: k, transposed: transposed, into: target, path: path)
                    }
                    sum.flush()
                }
            }
        }
        return c
    }

    /// Rows of 200, 100 and 37 values hold no whole blocks of 64, rows of 100 and 37 no whole runs of 32; 3137 values are
    /// summed in three parts.
    @Test(arguments: [(3, 5, 7), (1, 64, 64), (9, 97, 200), (21, 130, 100), (13, 96, 37), (4, 3137, 64), (5, 48, 3137)])
    func `on every path products are the sum of the rounded operands, from every form`(shape: (Int, Int, Int)) throws {
        let (m, rows, columns) = shape
        for (name, matrix) in try weightForms(random(rows * columns, "weights"), rows, columns) {
            let weights = rounded(matrix.decoded())
            for transposed in [false, true] {
                let (n, k) = transposed ? (columns, rows) : (rows, columns)
                let a = random(m * k, "a")
                let start = transposed ? random(m * n, "start") : nil
                let operand = rounded(a)
                var exact = start.map { $0.map(Double.init) } ?? [Double](repeating: 0, count: m * n)
                for i in 0..<m {
                    for j in 0..<n {
                        for l in 0..<k {
                            exact[i * n + j] += operand[i * k + l] * weights[transposed ? l * columns + j : j * columns + l]
                        }
                    }
                }
                var twin: [Float]?
                for path in KernelPath.supported {
                    let values = product(a, m: m, matrix, transposed: transposed, start: start, path: path)
                    let closeness = Closeness(values.map(Double.init), exact)
                    #expect(closeness.isWithin(norm: 1e-5), "\(name) \(path) transposed \(transposed): \(closeness)")
                    if let twin { #expect(Closeness(values, twin).isWithin(norm: 1e-3)) } else { twin = values }
                }
            }
        }
    }

    @Test func `rounding is to nearest even on every path`() {
        let values: [Float] =
            [0, -0, 1, 1.00390625, 1.01171875, -1.00390625, .infinity, -.infinity, .greatestFiniteMagnitude, 3.0e-38]
            + [.leastNonzeroMagnitude, -.leastNonzeroMagnitude, .leastNormalMagnitude / 2]
            + random(28, "values")
        for path in KernelPath.supported {
            let rows = HalfRows()
            rows.reserve(rows: 1, columns: values.count)
            values.withUnsafeBufferPointer {
                rows.round($0.baseAddress!, lead: values.count, rows: 0..<1, columns: values.count, path: path)
            }
            for (index, value) in values.enumerated() {
                let expected = value.isSubnormal ? (value < 0 ? 0x8000 : 0) : bfloat16Bits(value)
                #expect(rows.pointer[index] == expected, "\(value) on \(path)")
            }
            #expect(rows.pointer[values.count] == 0, "an odd row ends with a zero")
        }
    }

    @Test func `a processor without the instructions refuses bfloat16, and auto takes float32`() throws {
        if ComputeType.bfloat16.isSupported {
            #expect(try ComputeChoice.bfloat16.type(holdsFloat32: true) == .bfloat16)
            #expect(try ComputeChoice.auto.type(holdsFloat32: false) == .bfloat16)
        } else {
            #expect(throws: Failure.self) { try ComputeChoice.bfloat16.type(holdsFloat32: false) }
            #expect(try ComputeChoice.auto.type(holdsFloat32: false) == .float32)
        }
        #expect(try ComputeChoice.auto.type(holdsFloat32: true) == .float32)
        #expect(try ComputeChoice.float32.type(holdsFloat32: false) == .float32)
    }
}

@Suite(.enabled(if: ComputeType.bfloat16.isSupported)) struct HalfModelTests {
    /// Every architecture, method, bias, correction and weight form, at odd shapes.
    private static let variants: [(model: TinyModel, method: AdapterMethod, correction: Int?, form: WeightForm)] = [
        (TinyModel(), .lora, nil, .stored),
        (TinyModel(hidden: 64, intermediate: 96, keyValueHeads: 3, headSize: 32), .lora, nil, .nf4),
        (TinyModel(architecture: .qwen2, keyValueHeads: 3, tied: true, biases: true), .lora, nil, .int8),
        (TinyModel(architecture: .qwen3, heads: 4, keyValueHeads: 2, headSize: 10), .lora, 2, .nf4),
        (TinyModel(), .ffaLoRA, 4, .stored),
        (TinyModel(hidden: 64, intermediate: 160, heads: 4, keyValueHeads: 2, headSize: 16), .loraSB, 3, .nf4),
    ]

    private func make(_ index: Int, _ compute: ComputeChoice) throws -> AdaptedModel {
        let variant = Self.variants[index]
        let model = try variant.model.load(variant.form, compute: compute)
        let specification = try AdapterSpecification(
            method: variant.method, maps: model.linearMaps, rank: 3, alpha: 5, rankStabilized: false)
        return try AdaptedModel(model: model, weights: randomWeights(specification, correctionRank: variant.correction))
    }

    private func gradient(_ model: AdaptedModel, _ batch: TokenBatch) throws -> (loss: Double, gradient: [Float]) {
        var gradient = [Float](repeating: 0, count: model.weights.trained.layout.parameterCount)
        let result = try model.lossAndGradient(batch, gradientScale: 1 / Float(batch.tokens.count), gradient: &gradient)
        return (result.loss, gradient)
    }

    @Test(arguments: variants.indices) func `losses and gradients are those of float32 within the rounding`(index: Int) throws {
        let batch = Self.variants[index].model.batch([9, 2, 150, 1])
        let (loss, values) = try gradient(try make(index, .bfloat16), batch)
        let reference = try make(index, .float32)
        let (referenceLoss, referenceValues) = try gradient(reference, batch)
        #expect(loss != referenceLoss)
        #expect(abs(loss - referenceLoss) < 0.01 * referenceLoss)
        let layout = reference.weights.trained.layout
        for (index, tensor) in layout.tensors.enumerated() {
            let closeness = Closeness(values[layout.range(index)], referenceValues[layout.range(index)])
            #expect(closeness.isWithin(norm: 8e-2), "\(tensor.map) \(tensor.role): \(closeness)")
        }
    }

    @Test(arguments: variants.indices) func `one thread and several give the same bits`(index: Int) throws {
        let batch = Self.variants[index].model.batch([300, 2, 250, 1])
        let model = try make(index, .bfloat16)
        let several = try gradient(model, batch)
        let one = try Parallel.limited(toThreads: 1) { try gradient(model, batch) }
        model.activationMemoryLimit = 0
        let again = try gradient(model, batch)
        #expect(several.loss == one.loss && several.gradient == one.gradient)
        #expect(several.loss == again.loss && several.gradient == again.gradient)
    }
}
