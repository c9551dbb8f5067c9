namespace Mustafar.Models.Evaluation;

/// <summary>Finds formats of keys and values, for each layer, by measuring on a text.</summary>
/// <remarks>
/// <para>
/// First each format is measured for the keys, and for the values, of one layer while all else stays as it is: what it loses is the mean
/// KL divergence of the next-token distribution from the dense model's. Perplexity changes by about as much and varies far more from
/// text to text. Losses of small changes add up: each moves the scores a little, and the divergence of small moves that are independent is
/// the sum of their own. So the formats whose losses have the smallest sum within a number of bytes are found exactly, as a knapsack
/// problem.
/// </para>
/// <para>
/// That sum is only an estimate. The setting it leads to is measured as a whole, beside the best one in which all layers are alike, and
/// with a budget of quality its bytes are changed until what is measured keeps to it. Both are measured again on another text. All
/// measurements are those of an <see cref="EvaluationRun"/>, which keeps each as soon as it is there.
/// </para>
/// </remarks>
public sealed class CacheRecommender
{
    // Of a budget of quality: settings that are measured to find the one of the fewest bytes.
    private const int MostRounds = 8;

    private readonly PerplexityTask _search;
    private readonly PerplexityTask _check;
    private readonly string _directory;
    private readonly CandidateFormats _formats;

    /// <summary>Prepares a search.</summary>
    /// <param name="search">The text to search on. Several tokens in a step make it faster.</param>
    /// <param name="check">Another text, of the same model, to check on.</param>
    /// <param name="directory">Where measurements are kept; it is made if it doesn't exist.</param>
    /// <param name="basis">Windows and groups; the defaults if null.</param>
    /// <param name="candidates">Options whose keys and values are tried, apart from each other; common formats of 8 and 4 bits if null.
    /// Keys and values as they are, are always among them.</param>
    /// <exception cref="ArgumentException">The tasks are of different models, or a candidate is simulated: <see cref="SimulatedFormat"/>.</exception>
    /// <exception cref="NotSupportedException">The model's keys and values can't be compressed as a candidate says.</exception>
    public CacheRecommender(
        PerplexityTask search, PerplexityTask check, string directory, MustafarOptions? basis = null, IEnumerable<MustafarOptions>? candidates = null)
    {
        ArgumentNullException.ThrowIfNull(search);
        ArgumentNullException.ThrowIfNull(check);
        ArgumentNullException.ThrowIfNull(directory);
        if (search.Language != check.Language)
        {
            throw new ArgumentException("Expected tasks of one model, but they are of two.", nameof(check));
        }

        (_search, _check, _directory) = (search, check, directory);
        _formats = new CandidateFormats(search.Language, basis ?? new MustafarOptions(), candidates);
    }

    /// <summary>Measures what is not known yet, and recommends a setting.</summary>
    /// <param name="budget">What it has to keep to.</param>
    /// <param name="progress">Told how far each of the runs is: of single formats, of settings, and on the text to check on.</param>
    /// <param name="cancellationToken">Stops the work; what is finished is kept.</param>
    /// <exception cref="ArgumentException">No setting has so few bytes.</exception>
    /// <exception cref="OperationCanceledException">It was stopped.</exception>
    /// <exception cref="IOException">A result can't be read or written.</exception>
    public CacheRecommendation Recommend(
        RecommendationBudget budget, IProgress<EvaluationProgress>? progress = null, CancellationToken cancellationToken = default)
    {
        ArgumentNullException.ThrowIfNull(budget);
        Dictionary<(bool Keys, int Layer), double[]> losses = MeasureFormats(progress, cancellationToken);
        FormatKnapsack knapsack = new(
            _formats.Pairs, _formats.NumLayers, (layer, pair) => losses[(true, layer)][pair.Keys] + losses[(false, layer)][pair.Values]);
        (FormatPlan chosen, FormatPlan? uniform) = budget.Bytes is double ratio
            ? OfBytes(knapsack, ratio, progress, cancellationToken)
            : OfLoss(knapsack, Math.Log(budget.Perplexity!.Value), progress, cancellationToken);
        CacheSetting recommended = _formats.Setting("recommended", chosen);
        CacheSetting? alike = uniform is null ? null : _formats.Setting("all layers alike", uniform);
        return new CacheRecommendation(
            budget,
            recommended,
            [.. Layers(chosen, losses)],
            Measured(_search, recommended, chosen, alike, uniform, progress, cancellationToken),
            Measured(_check, recommended, chosen, alike, uniform, progress, cancellationToken),
            [.. Losses(losses)]);
    }

    private (FormatPlan Chosen, FormatPlan? Uniform) OfBytes(
        FormatKnapsack knapsack, double ratio, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken)
    {
        double bytes = ratio * _formats.NumLayers * _formats.DenseBlockBytes;
        FormatPlan plan = knapsack.Within(bytes) ?? throw new ArgumentException(FormattableString.Invariant(
            $"Expected a budget of at least {(double)knapsack.FewestBytes / (_formats.NumLayers * _formats.DenseBlockBytes):F3} of dense fp16, the fewest bytes that a candidate takes, but got {ratio}."));
        FormatPlan? uniform = knapsack.Uniform(other => other.BlockBytes <= bytes, other => (other.Loss, other.BlockBytes));
        return (Better(plan, uniform, progress, cancellationToken), uniform);
    }

    private (FormatPlan Chosen, FormatPlan? Uniform) OfLoss(
        FormatKnapsack knapsack, double target, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken)
    {
        // What is left as it is loses nothing, so that there always is a plan. Nothing of fewer bytes than tooFew will do.
        FormatPlan chosen = knapsack.Losing(0)!;
        long tooFew = knapsack.FewestBytes - 1;
        double factor = 1; // of what is measured to what is estimated
        for (int round = 0; round < MostRounds; round++)
        {
            // What the estimate says, or halfway between what will do and what will not.
            FormatPlan plan = knapsack.Losing(target / factor)!;
            if (plan.BlockBytes <= tooFew || plan.BlockBytes >= chosen.BlockBytes)
            {
                plan = knapsack.Within(Math.Sqrt((double)Math.Max(1, tooFew) * chosen.BlockBytes)) ?? plan;
            }

            if (plan.BlockBytes <= tooFew || plan.BlockBytes >= chosen.BlockBytes)
            {
                break;
            }

            double loss = LossOf(plan, progress, cancellationToken);
            if (loss <= target)
            {
                chosen = plan;
            }
            else
            {
                tooFew = plan.BlockBytes;
            }

            factor = plan.Loss > 0 ? Math.Max(loss / plan.Loss, factor / 4) : factor;
        }

        FormatPlan? uniform = knapsack.Uniform(other => other.BlockBytes <= chosen.BlockBytes, other => (other.Loss, other.BlockBytes));
        return (chosen, uniform);
    }

    // What the estimate says is best need not be, of two that are close.
    private FormatPlan Better(FormatPlan plan, FormatPlan? uniform, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken) =>
        uniform is not null && LossOf(uniform, progress, cancellationToken) < LossOf(plan, progress, cancellationToken) ? uniform : plan;

    // How much a plan raises the mean negative log-likelihood, as a whole.
    private double LossOf(FormatPlan plan, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken)
    {
        List<EvaluationUnit> units = Run(_search, [_formats.Setting("plan", plan)], progress, cancellationToken);
        return units[1].Value("mean_nll") - units[0].Value("mean_nll");
    }

    private Dictionary<(bool Keys, int Layer), double[]> MeasureFormats(IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken)
    {
        (bool Keys, int Layer, int Candidate)[] all =
        [
            .. from layer in Enumerable.Range(0, _formats.NumLayers)
               from keys in (bool[])[true, false]
               from candidate in Enumerable.Range(1, _formats.Of(keys).Count - 1)
               select (keys, layer, candidate),
        ];
        List<EvaluationUnit> units = Run(_search, [.. all.Select(one => _formats.Alone(one.Layer, one.Keys, one.Candidate))], progress, cancellationToken);
        double rounding = units[0].Value("kl_mean");
        Dictionary<(bool, int), double[]> losses = [];
        foreach (((bool keys, int layer, int candidate), EvaluationUnit unit) in all.Zip(units.Skip(1)))
        {
            if (!losses.TryGetValue((keys, layer), out double[]? own))
            {
                losses.Add((keys, layer), own = new double[_formats.Of(keys).Count]);
            }

            // What the dense cache has too is rounding. A model that breaks has no number: nothing is worse.
            double loss = unit.Value("kl_mean") - rounding;
            own[candidate] = double.IsFinite(loss) ? Math.Max(0, loss) : double.MaxValue / (4 * _formats.NumLayers);
        }

        return losses;
    }

    private MeasuredSetting[] Measured(
        PerplexityTask task,
        CacheSetting recommended,
        FormatPlan plan,
        CacheSetting? alike,
        FormatPlan? uniform,
        IProgress<EvaluationProgress>? progress,
        CancellationToken cancellationToken)
    {
        List<EvaluationUnit> units = Run(task, alike is null ? [recommended] : [recommended, alike], progress, cancellationToken);
        return
        [
            new MeasuredSetting(units[0], 1, null),
            new MeasuredSetting(units[1], _formats.Ratio(plan), plan.Loss),
            .. alike is null ? [] : (MeasuredSetting[])[new MeasuredSetting(units[2], _formats.Ratio(uniform!), uniform!.Loss)],
        ];
    }

    private List<EvaluationUnit> Run(
        PerplexityTask task, CacheSetting[] settings, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken) =>
        [.. new EvaluationRun([task], settings, _directory).Run(progress, cancellationToken)];

    private IEnumerable<LayerChoice> Layers(FormatPlan plan, Dictionary<(bool Keys, int Layer), double[]> losses) => plan.Layers.Select(
        (pair, layer) => new LayerChoice(
            layer,
            _formats.Keys[pair.Keys].Name,
            losses[(true, layer)][pair.Keys],
            _formats.Values[pair.Values].Name,
            losses[(false, layer)][pair.Values],
            (double)pair.BlockBytes / _formats.DenseBlockBytes));

    private IEnumerable<FormatLoss> Losses(Dictionary<(bool Keys, int Layer), double[]> losses) =>
        from item in losses
        from candidate in Enumerable.Range(0, item.Value.Length)
        let format = _formats.Of(item.Key.Keys)[candidate]
        select new FormatLoss(
            item.Key.Layer, item.Key.Keys, format.Name, 2.0 * format.BlockBytes / _formats.DenseBlockBytes, item.Value[candidate]);
}
