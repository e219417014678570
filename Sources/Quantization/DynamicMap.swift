/// bitsandbytes' 8-bit map with a falling number of values for each decade (Dettmers 2015, arXiv:1511.04561).

import CKernels

public struct DynamicMap: Sendable {
    /// 256 rising values, zero and 1 among them.
    public let values: [Float]
    /// The same and how to find the nearest of them, for kernels; never freed, since no map is made but the two below.
    nonisolated(unsafe) public let table: UnsafePointer<tributary_code_map>

    /// In [-0.993, 1] (`create_dynamic_map(signed=True)`): for what can be negative.
    public static let signed = DynamicMap(signed: true)
    /// In [0, 1] (`create_dynamic_map(signed=False)`), with twice as many values for each decade. Only zero takes zero's code:
    /// smaller positive numbers take the smallest positive value, 3.25e-7, as a second moment of zero under a first moment
    /// that is not would make steps of any size (the zero-point problem of Li et al. 2023, arXiv:2309.01507, section 4.1).
    public static let unsigned = DynamicMap(signed: false)

    /// Rounded to single precision where torch rounds, so that every value has bitsandbytes' bits.
    private init(signed: Bool) {
        var values: [Float] = [0, 1]
        for exponent in 0..<7 {
            let steps = 1 << (signed ? exponent : exponent + 1)
            // torch.linspace(0.1, 1, steps + 1) with its fused multiply-add: from the start in the lower half, from
            // the end in the upper.
            let step = (1 - Float(0.1)) / Float(steps)
            let boundaries = (0...steps).map { index in
                index < (steps + 1) / 2
                    ? Float(Double(Float(0.1)) + Double(step) * Double(index)) : Float(1 - Double(step) * Double(steps - index))
            }
            let power: Float = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1][exponent]
            for index in 0..<steps {
                let mean = (boundaries[index] + boundaries[index + 1]) / 2
                values.append(power * mean)
                if signed { values.append(-(power * mean)) }
            }
        }
        values.sort()
        self.values = values
        table = Self.makeTable(values)
    }

    /// The code of the value nearest to `value`, the lower one of two equally near; see `unsigned` for its one exception.
    public func nearest(_ value: Double) -> UInt8 {
        var low = values[0] == 0 && value > 0 ? 1 : 0
        var high = values.count - 1
        while high - low > 1 {
            let middle = (low + high) / 2
            if Double(values[middle]) <= value { low = middle } else { high = middle }
        }
        return UInt8(abs(value - Double(values[high])) < abs(value - Double(values[low])) ? high : low)
    }

    private static func makeTable(_ values: [Float]) -> UnsafePointer<tributary_code_map> {
        func kept<Element>(_ elements: [Element]) -> UnsafePointer<Element> {
            let memory = UnsafeMutablePointer<Element>.allocate(capacity: elements.count)
            memory.initialize(from: elements, count: elements.count)
            return UnsafePointer(memory)
        }
        // The largest float not above the middle of two neighbours (exact in double): a greater float is nearer to the
        // upper one, the middle itself takes the lower.
        var thresholds = zip(values, values.dropFirst()).map { low, high in
            let middle = (Double(low) + Double(high)) / 2
            let rounded = Float(middle)
            return Double(rounded) > middle ? rounded.nextDown : rounded
        }
        thresholds.append(.infinity)
        if values[0] == 0 { thresholds[0] = 0 }
        let count = TRIBUTARY_BUCKETS
        var buckets: [UInt8] = []
        for index in 0..<2 * count {
            func bound(_ bucket: Int) -> Float {
                Float(bitPattern: UInt32(bucket + TRIBUTARY_FIRST_BUCKET) << UInt32(TRIBUTARY_BUCKET_SHIFT))
            }
            let bucket = index % count
            let smallest = bucket == 0 ? 0 : bound(bucket)
            let largest = bucket == count - 1 ? Float.infinity : bound(bucket + 1).nextDown
            let (low, high) = index < count ? (smallest, largest) : (-largest, -smallest)
            let code = thresholds.count { $0 < low }
            precondition(thresholds.count { $0 < high } <= code + 1, "two thresholds lie between \(low) and \(high)")
            buckets.append(UInt8(code))
        }
        return kept([tributary_code_map(values: kept(values), thresholds: kept(thresholds), buckets: kept(buckets))])
    }
}
