/// 4-bit weights in files: the tensors that bitsandbytes and transformers write beside a packed weight, read and written.
///
/// bitsandbytes 0.50, functional.py, `QuantState.as_dict(packed=True)` and `from_dict`.

import Checkpoints
import Primitives

/// The JSON in a weight's `quant_state.bitsandbytes__nf4`.
struct QuantizationState {
    let type: String
    let blockSize: Int
    /// The type before quantization, by torch's name.
    let dtype: String
    let shape: [Int]
    var nestedBlockSize = NestedScales.defaultBlockSize
    var nestedOffset: Double?

    init(type: String, blockSize: Int, dtype: String, shape: [Int], nested: NestedScales?) {
        self.type = type
        self.blockSize = blockSize
        self.dtype = dtype
        self.shape = shape
        if let nested {
            nestedBlockSize = nested.blockSize
            nestedOffset = Double(nested.offset)
        }
    }

    /// - Throws: `Failure` that names the tensor and the field.
    init(_ tensor: StoredTensor) throws(Failure) {
        func wrong(_ what: String) -> Failure { Failure(.badData, "\(tensor.file.path): tensor \(tensor.name) \(what)") }
        let json: JSONValue
        do {
            json = try JSONValue(parsing: Array(tensor.bytes))
        } catch {
            throw wrong("is not valid JSON: \(error.message)")
        }
        guard let type = json["quant_type"]?.text, type == "nf4" || type == "fp4" else {
            throw wrong("has quant_type \(json["quant_type"]?.compact ?? "missing"); nf4 and fp4 are supported")
        }
        guard let block = json["blocksize"]?.int, NF4.blockSizes.contains(block) else {
            throw wrong("has blocksize \(json["blocksize"]?.compact ?? "missing"); powers of two from 32 to 4096 are supported")
        }
        self.type = type
        blockSize = block
        dtype = json["dtype"]?.text ?? "float32"
        shape = json["shape"]?.elements?.compactMap(\.int) ?? []
        guard json["nested_offset"] != nil else { return }
        guard let offset = json["nested_offset"]?.double, Float(offset).isFinite, let nestedBlock = json["nested_blocksize"]?.int,
            nestedBlock > 0
        else {
            throw wrong("has no valid nested_blocksize and nested_offset")
        }
        nestedBlockSize = nestedBlock
        nestedOffset = offset
    }

    /// As Python's `json.dumps` prints it. The offset is the shortest text that gives the same double, so that it reads
    /// back as the same float; spaces behind the end make the length independent of it, so that a file's header can
    /// be written before the weights are quantized.
    var text: String {
        var text = "{\"quant_type\": \"\(type)\", \"blocksize\": \(blockSize), \"dtype\": \"\(dtype)\", \"shape\": \(shape)"
        guard let nestedOffset else { return text + "}" }
        text += ", \"nested_blocksize\": \(nestedBlockSize), \"nested_dtype\": \"float32\", \"nested_offset\": "
        let number = "\(nestedOffset)"
        // The longest double, -2.2250738585072014e-308, has 24 characters.
        return text + number + "}" + String(repeating: " ", count: 24 - number.utf8.count)
    }
}

extension FourBitCodes {
    /// The codes of a packed weight, left in the mapped file.
    ///
    /// - Throws: `Failure` that names the tensor that is missing or wrong
    public static func load(
        map: LinearMap, from checkpoint: CheckpointFolder
    ) throws(Failure) -> FourBitCodes {
        let name = map.name + ".weight"
        let packed = try checkpoint.tensor(name)
        let prefix = name + ".quant_state.bitsandbytes__"
        let stored = try checkpoint.tensor(checkpoint.hasTensor(prefix + "nf4") ? prefix + "nf4" : prefix + "fp4")
        let state = try QuantizationState(stored)
        func wrong(_ what: String) -> Failure { Failure(.badData, "\(packed.file.path): \(what); fetch the checkpoint again") }
        let count = map.outputs * map.inputs
        guard packed.range.count == (count + 1) / 2 else {
            throw wrong(
                "tensor \(name) has \(packed.range.count) bytes, but a \(map.outputs) x \(map.inputs) matrix needs \((count + 1) / 2)"
            )
        }
        let table = try checkpoint.tensor(name + ".quant_map").floats()
        guard table.count == 16, table.allSatisfy(\.isFinite) else {
            throw wrong("tensor \(name).quant_map is not 16 finite numbers")
        }
        let blocks = (count + state.blockSize - 1) / state.blockSize
        let absmax = try checkpoint.tensor(name + ".absmax")
        guard absmax.count == blocks else { throw wrong("tensor \(absmax.name) has \(absmax.count) scales, not \(blocks)") }
        guard absmax.dtype == .u8 else {
            let scales = try absmax.floats()
            if let index = scales.firstIndex(where: { !$0.isFinite }) {
                throw wrong("tensor \(absmax.name) holds \(scales[index]) at \(index)")
            }
            return FourBitCodes(
                format: state.type, table: table, blockSize: state.blockSize, packed: .mapped(packed), scales: .plain(scales))
        }
        guard let offset = state.nestedOffset else { throw wrong("tensor \(stored.name) has no nested_offset") }
        let nestedMap = try checkpoint.tensor(name + ".nested_quant_map").floats()
        let nestedScales = try checkpoint.tensor(name + ".nested_absmax").floats()
        guard nestedMap.count == 256, nestedMap.allSatisfy(\.isFinite) else {
            throw wrong("tensor \(name).nested_quant_map is not 256 finite numbers")
        }
        guard nestedScales.count == (blocks + state.nestedBlockSize - 1) / state.nestedBlockSize,
            nestedScales.allSatisfy(\.isFinite)
        else {
            throw wrong("tensor \(name).nested_absmax does not hold one finite number for \(state.nestedBlockSize) scales")
        }
        func largest(_ values: [Float]) -> Float { values.reduce(0) { max($0, abs($1)) } }
        guard (largest(nestedScales) * largest(nestedMap) + abs(Float(offset))).isFinite else {
            throw wrong("tensor \(name).nested_absmax gives scales that are not finite")
        }
        let nested = NestedScales(
            codes: Array(absmax.bytes), map: nestedMap, scales: nestedScales, offset: Float(offset),
            blockSize: state.nestedBlockSize)
        return FourBitCodes(
            format: state.type, table: table, blockSize: state.blockSize, packed: .mapped(packed), scales: .nested(nested))
    }

    /// The tensors that bitsandbytes reads for a weight, the packed codes first.
    ///
    /// - Parameters:
    ///   - name: of the weight: `model.layers.0.self_attn.q_proj.weight`
    ///   - shape: `[outputs, inputs]`
    ///   - dtype: type of the weight before quantization
    public func serialized(
        name: String, shape: [Int], dtype: TensorType
    ) -> [(declaration: TensorDeclaration, bytes: [UInt8])] {
        func bytes(_ values: [Float]) -> [UInt8] { values.withUnsafeBytes { Array($0) } }
        let packed = packedBytes
        var parts: [(declaration: TensorDeclaration, bytes: [UInt8])] = []
        func add(_ suffix: String, _ type: TensorType, _ shape: [Int], _ bytes: [UInt8]) {
            parts.append((TensorDeclaration(name: name + suffix, dtype: type, shape: shape), bytes))
        }
        add("", .u8, [packed.count, 1], packed)
        var state = QuantizationState(type: format, blockSize: blockSize, dtype: dtype.torchName, shape: shape, nested: nil)
        switch scales {
        case .plain(let values): add(".absmax", .f32, [values.count], bytes(values))
        case .nested(let nested):
            add(".absmax", .u8, [nested.codes.count], nested.codes)
            add(".nested_absmax", .f32, [nested.scales.count], bytes(nested.scales))
            add(".nested_quant_map", .f32, [nested.map.count], bytes(nested.map))
            state = QuantizationState(type: format, blockSize: blockSize, dtype: dtype.torchName, shape: shape, nested: nested)
        }
        add(".quant_map", .f32, [table.count], bytes(table))
        let text = Array(state.text.utf8)
        add(".quant_state.bitsandbytes__" + format, .u8, [text.count], text)
        return parts
    }

    /// The declarations of what `serialized` will give for a weight, known before it is quantized.
    public static func declarations(
        name: String, shape: [Int], dtype: TensorType, format: String = NF4.name, blockSize: Int = NF4.defaultBlockSize,
        nested: Bool = true
    ) -> [TensorDeclaration] {
        let count = shape.reduce(1, *)
        let blocks = (count + blockSize - 1) / blockSize
        let nestedCount = (blocks + NestedScales.defaultBlockSize - 1) / NestedScales.defaultBlockSize
        let scales = NestedScales(
            codes: [], map: DynamicMap.signed.values, scales: [], offset: 0, blockSize: NestedScales.defaultBlockSize)
        let state = QuantizationState(
            type: format, blockSize: blockSize, dtype: dtype.torchName, shape: shape, nested: nested ? scales : nil)
        func tensor(_ suffix: String, _ type: TensorType, _ shape: [Int]) -> TensorDeclaration {
            TensorDeclaration(name: name + suffix, dtype: type, shape: shape)
        }
        return [tensor("", .u8, [(count + 1) / 2, 1]), tensor(".absmax", nested ? .u8 : .f32, [blocks])]
            + (nested ? [tensor(".nested_absmax", .f32, [nestedCount]), tensor(".nested_quant_map", .f32, [256])] : [])
            + [
                tensor(".quant_map", .f32, [16]),
                tensor(".quant_state.bitsandbytes__" + format, .u8, [state.text.utf8.count]),
            ]
    }

    /// `quantization_config` of a `config.json` beside such weights, as transformers reads it.
    public static func quantizationConfiguration(
        format: String = NF4.name, computeType: TensorType, nested: Bool, skippedModules: [String]
    ) -> JSONValue {
        .object([
            .init("_load_in_4bit", .boolean(true)),
            .init("_load_in_8bit", .boolean(false)),
            .init("bnb_4bit_compute_dtype", .string(computeType.torchName)),
            .init("bnb_4bit_quant_storage", .string("uint8")),
            .init("bnb_4bit_quant_type", .string(format)),
            .init("bnb_4bit_use_double_quant", .boolean(nested)),
            .init("llm_int8_enable_fp32_cpu_offload", .boolean(false)),
            .init("llm_int8_has_fp16_weight", .boolean(false)),
            .init("llm_int8_skip_modules", skippedModules.isEmpty ? .null : .array(skippedModules.map { .string($0) })),
            .init("llm_int8_threshold", .number("6.0")),
            .init("load_in_4bit", .boolean(true)),
            .init("load_in_8bit", .boolean(false)),
            .init("quant_method", .string("bitsandbytes")),
        ])
    }
}
