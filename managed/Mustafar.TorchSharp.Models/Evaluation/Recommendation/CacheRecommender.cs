namespace Mustafar.Models.Evaluation;

/// <summary>Finds formats for the keys and values of each layer by measuring on a text.</summary>
/// <remarks>
/// <para>
/// First, each format is measured for the keys, or the values, of one layer while everything else is stored unchanged. Its loss is the mean
/// KL divergence of the next-token distribution from the dense model's. Perplexity changes by about as much, but varies far more from text
/// to text. Losses of small changes add up: each change moves the scores a little, and the divergence of small independent moves is the sum
/// of their divergences. The formats with the smallest sum of losses within a number of bytes are therefore found exactly, as a knapsack
/// problem.
/// </para>
/// <para>
/// That sum is only an estimate. The resulting setting is measured as a whole, next to the best one with the same formats in all layers.
/// With a quality budget, its bytes are changed until the measured quality is within the budget. Both settings are measured again on
/// another text. All measurements are made by an <see cref="EvaluationRun"/>, which saves each one as soon as it is finished.
/// </para>
/// </remarks>
public sealed class CacheRecommender
{
    // With a quality budget: the most settings measured to find the one with the fewest bytes.
    private const int MostRounds = 8;

    private readonly PerplexityTask _search;
    private readonly PerplexityTask _check;
    private readonly string _directory;
    private readonly CandidateFormats _formats;

    /// <summary>Prepares a search.</summary>
    /// <param name="search">The text to search on. Decoding several tokens in a step makes it faster.</param>
    /// <param name="check">Another text, for the same model, to check on.</param>
    /// <param name="directory">Where measurements are saved; created if it does not exist.</param>
    /// <param name="basis">Windows and groups; the defaults if null.</param>
    /// <param name="candidates">Options whose keys and values are tried independently of each other; common 8-bit and 4-bit formats if
    /// null. Unchanged keys and values are always among the candidates.</param>
    /// <exception cref="ArgumentException">The tasks have different models, or a candidate is simulated
    /// (<see cref="SimulatedFormat"/>).</exception>
    /// <exception cref="NotSupportedException">The model's keys and values can't be compressed with a candidate.</exception>
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
    /// <param name="budget">The budget of the setting.</param>
    /// <param name="progress">Receives the progress of each run: of single formats, of settings, and on the text to check on.</param>
    /// <param name="cancellationToken">Cancels the work; finished measurements are kept.</param>
    /// <exception cref="ArgumentException">No setting has as few bytes as the budget.</exception>
    /// <exception cref="OperationCanceledException">The work was cancelled.</exception>
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
        // Unchanged formats lose nothing, so there is always a plan. No plan of tooFew bytes or fewer meets the budget.
        FormatPlan chosen = knapsack.Losing(0)!;
        long tooFew = knapsack.FewestBytes - 1;
        double factor = 1; // measured loss over estimated loss
        for (int round = 0; round < MostRounds; round++)
        {
            // Follow the estimate, or go halfway between what meets the budget and what does not.
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

    // Of two plans that are close, the one that is estimated to be better need not be.
    private FormatPlan Better(FormatPlan plan, FormatPlan? uniform, IProgress<EvaluationProgress>? progress, CancellationToken cancellationToken) =>
        uniform is not null && LossOf(uniform, progress, cancellationToken) < LossOf(plan, progress, cancellationToken) ? uniform : plan;

    // How much a plan as a whole raises the mean negative log-likelihood.
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

            // The dense cache's divergence is rounding error. A model that breaks has no finite number, and nothing is worse.
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
