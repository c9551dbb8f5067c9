using Mustafar.Models.Generation;
using Mustafar.Models.Llama;

namespace Mustafar.Models.Evaluation;

/// <summary>The formats that a layer's keys and values can have, and which of them can be combined.</summary>
internal sealed class CandidateFormats
{
    private readonly MustafarOptions _basis;

    /// <summary>Finds the formats.</summary>
    /// <param name="language">The model.</param>
    /// <param name="basis">Windows and groups.</param>
    /// <param name="candidates">Options whose keys and values are candidates independently of each other; the defaults if null.</param>
    /// <exception cref="ArgumentException">A candidate rewrites keys or values: caches have no such format.</exception>
    /// <exception cref="NotSupportedException">The model's head_dim is not supported, or not with a candidate.</exception>
    public CandidateFormats(LanguageModel language, MustafarOptions basis, IEnumerable<MustafarOptions>? candidates)
    {
        LlamaConfig config = language.Model.Config;
        (_basis, HeadDim, NumLayers) = (basis, config.HeadDim, config.NumLayers);
        CacheShape shape = CacheShape.Checked(config.KeyValueShape, language.Model.DType, language.Model.Device);
        MustafarOptions unchanged = OperandCandidate.Unchanged(basis);
        MustafarOptions[] all = [unchanged, .. candidates ?? OperandCandidate.Defaults(basis)];
        ChannelSelection? rewriting = all.SelectMany(options => (ChannelSelection[])[options.KeySelection, options.ValueSelection]).FirstOrDefault(selection => selection.Rewrites);
        if (rewriting is not null)
        {
            throw new ArgumentException($"Expected formats that caches have, but '{rewriting.Name}' is simulated.", nameof(candidates));
        }

        Keys = Distinct(keys: true);
        Values = Distinct(keys: false);
        Pairs =
        [
            .. from keys in Enumerable.Range(0, Keys.Count)
               from values in Enumerable.Range(0, Values.Count)
               where (keys == 0 && values == 0) || new LayerFormat(shape, Combine(keys, values)).HasFastKernels(shape)
               select new FormatPair(keys, values, Keys[keys].BlockBytes + Values[values].BlockBytes),
        ];
        DenseBlockBytes = 2L * Native.NativeConstants.BlockTokens * config.HeadDim * sizeof(short);

        List<OperandCandidate> Distinct(bool keys)
        {
            List<OperandCandidate> distinct = [];
            foreach (MustafarOptions options in all)
            {
                MustafarOptions own = keys ? OperandCandidate.Combine(options, unchanged, basis) : OperandCandidate.Combine(unchanged, options, basis);
                string name = OperandCandidate.Describe(own, keys, HeadDim);
                if (distinct.TrueForAll(other => other.Name != name))
                {
                    LayerFormat format = new(shape, own);
                    distinct.Add(new OperandCandidate(name, own, (keys ? format.KeyBytes : format.ValueBytes) / format.PageBlocks));
                }
            }

            return distinct;
        }
    }

    /// <summary>Number of layers.</summary>
    public int NumLayers { get; }

    /// <summary>Elements of one head's key.</summary>
    public int HeadDim { get; }

    /// <summary>Formats of keys; the first one stores them unchanged.</summary>
    public IReadOnlyList<OperandCandidate> Keys { get; }

    /// <summary>Formats of values; the first one stores them unchanged.</summary>
    public IReadOnlyList<OperandCandidate> Values { get; }

    /// <summary>Formats that can be combined in a layer: on CUDA, those that tensor cores can read together.</summary>
    public IReadOnlyList<FormatPair> Pairs { get; }

    /// <summary>Bytes of one head's keys and values in a block, dense in fp16.</summary>
    public long DenseBlockBytes { get; }

    /// <summary>The formats of keys, or of values.</summary>
    public IReadOnlyList<OperandCandidate> Of(bool keys) => keys ? Keys : Values;

    /// <summary>The options of a layer with the given formats.</summary>
    public MustafarOptions Combine(int keys, int values) => OperandCandidate.Combine(Keys[keys].Options, Values[values].Options, _basis);

    /// <summary>The setting in which one layer's keys, or values, have a format and everything else is stored unchanged.</summary>
    public CacheSetting Alone(int layer, bool keys, int candidate)
    {
        MustafarOptions[] layers = new MustafarOptions[NumLayers];
        Array.Fill(layers, Combine(0, 0));
        layers[layer] = keys ? Combine(candidate, 0) : Combine(0, candidate);
        return new CacheSetting($"layer {layer} {(keys ? "keys" : "values")}, {Of(keys)[candidate].Name}", layers[0]) { Layers = layers };
    }

    /// <summary>The setting of a plan.</summary>
    public CacheSetting Setting(string name, FormatPlan plan)
    {
        MustafarOptions[] layers = [.. plan.Layers.Select(pair => Combine(pair.Keys, pair.Values))];
        return new CacheSetting(name, _basis) { Layers = layers };
    }

    /// <summary>A plan's bytes relative to dense fp16.</summary>
    public double Ratio(FormatPlan plan) => (double)plan.BlockBytes / (NumLayers * DenseBlockBytes);
}

/// <summary>The indices of the formats of a layer's keys and values, and the bytes of a block of both.</summary>
internal readonly record struct FormatPair(int Keys, int Values, long BlockBytes);

/// <summary>The formats of all layers.</summary>
/// <param name="Layers">The formats of each layer.</param>
/// <param name="BlockBytes">Bytes of a block, summed over all layers.</param>
/// <param name="Loss">The sum of the losses of the formats alone.</param>
internal sealed record FormatPlan(IReadOnlyList<FormatPair> Layers, long BlockBytes, double Loss);
