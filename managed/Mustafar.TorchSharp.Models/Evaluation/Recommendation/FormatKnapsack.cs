using System.Numerics;

namespace Mustafar.Models.Evaluation;

/// <summary>
/// Chooses the formats of all layers: within a number of bytes, those with the smallest sum of losses. This is the multiple-choice knapsack
/// problem, solved exactly for all numbers of bytes by dynamic programming.
/// </summary>
internal sealed class FormatKnapsack
{
    private readonly IReadOnlyList<FormatPair> _pairs;
    private readonly Func<int, FormatPair, double> _loss;
    private readonly int _layers;
    private readonly long _unit;
    private readonly double[] _best; // for each number of units of bytes, the smallest loss of all layers
    private readonly short[][] _choices; // for each layer and number of units, the layer's pair

    /// <summary>Solves the problem.</summary>
    /// <param name="pairs">The pairs of formats that a layer can have.</param>
    /// <param name="layers">Number of layers.</param>
    /// <param name="loss">The loss of a layer with a pair; not negative.</param>
    public FormatKnapsack(IReadOnlyList<FormatPair> pairs, int layers, Func<int, FormatPair, double> loss)
    {
        (_pairs, _layers, _loss) = (pairs, layers, loss);
        _unit = pairs.Aggregate(0L, (unit, pair) => (long)BigInteger.GreatestCommonDivisor(unit, pair.BlockBytes));
        int units = checked((int)(layers * pairs.Max(pair => pair.BlockBytes) / _unit));
        double[] best = new double[units + 1];
        _choices = new short[layers][];
        for (int layer = 0; layer < layers; layer++)
        {
            double[] next = new double[units + 1];
            short[] choices = _choices[layer] = new short[units + 1];
            Array.Fill(next, double.PositiveInfinity);
            Array.Fill(choices, (short)-1);
            foreach (int i in Efficient(layer))
            {
                int size = (int)(pairs[i].BlockBytes / _unit);
                double own = loss(layer, pairs[i]);
                for (int b = size; b <= units; b++)
                {
                    if (best[b - size] + own < next[b])
                    {
                        (next[b], choices[b]) = (best[b - size] + own, (short)i);
                    }
                }
            }

            best = next;
        }

        _best = best;
    }

    /// <summary>The fewest bytes that a block can have, summed over all layers.</summary>
    public long FewestBytes => _unit * Array.FindIndex(_best, double.IsFinite);

    /// <summary>The plan with the smallest loss within a number of bytes; null if there is none.</summary>
    public FormatPlan? Within(double bytes)
    {
        int units = (int)Math.Clamp(Math.Floor(bytes / _unit), -1, _best.Length - 1);
        return units < 0 || !double.IsFinite(_best[units]) ? null : PlanOf(units);
    }

    /// <summary>The plan with the fewest bytes whose loss does not exceed a limit; null if there is none.</summary>
    public FormatPlan? Losing(double loss)
    {
        int units = Array.FindIndex(_best, best => best <= loss);
        return units < 0 ? null : PlanOf(units);
    }

    /// <summary>The best plan with the same formats in all layers; null if none is allowed.</summary>
    /// <param name="allowed">Whether a plan is allowed.</param>
    /// <param name="better">What to minimise.</param>
    public FormatPlan? Uniform(Func<FormatPlan, bool> allowed, Func<FormatPlan, (double, double)> better) => _pairs
        .Select(pair => new FormatPlan(
            [.. Enumerable.Repeat(pair, _layers)], _layers * pair.BlockBytes, Enumerable.Range(0, _layers).Sum(layer => _loss(layer, pair))))
        .Where(allowed)
        .MinBy(better);

    // The pairs of a layer for which no smaller pair loses as little.
    private IEnumerable<int> Efficient(int layer)
    {
        double least = double.PositiveInfinity;
        foreach (int i in Enumerable.Range(0, _pairs.Count).OrderBy(i => _pairs[i].BlockBytes).ThenBy(i => _loss(layer, _pairs[i])))
        {
            if (_loss(layer, _pairs[i]) < least)
            {
                least = _loss(layer, _pairs[i]);
                yield return i;
            }
        }
    }

    private FormatPlan PlanOf(int units)
    {
        FormatPair[] layers = new FormatPair[_layers];
        for (int layer = _layers - 1; layer >= 0; layer--)
        {
            layers[layer] = _pairs[_choices[layer][units]];
            units -= (int)(layers[layer].BlockBytes / _unit);
        }

        return new FormatPlan(layers, layers.Sum(pair => pair.BlockBytes), layers.Select((pair, layer) => _loss(layer, pair)).Sum());
    }
}
